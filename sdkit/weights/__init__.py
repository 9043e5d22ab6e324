"""Bytes on disk: the only code of sdkit that opens weight files. Works without torch and numpy."""

from sdkit.weights.dtypes import DTYPES, DType
from sdkit.weights.header import TensorInfo
from sdkit.weights.reader import Weights, open_weights

__all__ = ["DTYPES", "DType", "TensorInfo", "Weights", "open_weights"]
