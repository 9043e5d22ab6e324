"""``python -m benchmarks``: merges; ``python -m benchmarks blend``: blends, extraction and resizing."""

from __future__ import annotations

import sys

from benchmarks import blend, merge

if __name__ == "__main__":
    if sys.argv[1:2] == ["blend"]:
        del sys.argv[1]
        blend.main()
    else:
        merge.main()
