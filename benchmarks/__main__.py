"""``python -m benchmarks``: merges; ``… blend``: blends, extraction and resizing; ``… convert``: conversions."""

from __future__ import annotations

import sys

from benchmarks import blend, convert, merge

if __name__ == "__main__":
    if sys.argv[1:2] == ["blend"]:
        del sys.argv[1]
        blend.main()
    elif sys.argv[1:2] == ["convert"]:
        del sys.argv[1]
        convert.main()
    else:
        merge.main()
