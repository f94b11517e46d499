"""Quantize a GGUF file with llama.cpp: python quantize_gguf.py FROM TO TYPE, a type as in "Q8_0".

Blocks of another type are turned into float32 first, so that nothing is taken from them but the
values they stand for.
"""

import ctypes
import sys

import llama_cpp


def main(source, target, name):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.allow_requantize = True
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if status:
        sys.exit(f"llama_model_quantize answers {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
