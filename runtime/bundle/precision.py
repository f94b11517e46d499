"""The types of a bundle: of its weights, its arithmetic and its cache, and what weights are where they
are integers.

In: names of types and methods. Out: `Precision`, `Quantization`, and refusals of what they exclude.
"""

from dataclasses import dataclass

from firp.runtime.bundle.dtypes import MODEL_DTYPES
from firp.runtime.errors import FirpError

METHODS = ("int8", "int4")
# Of one weight [out, in]. "int8 rows": one scale an output, and activations rounded to int8 row by
# row as they come, so that a product is one of integers; of two bytes, what that leaves is rounded to
# int8 once more, and multiplied as a row beside it. "blocks": one scale for every 32 inputs of an output;
# "offsets": and a number that is added to the 32 values, which is more inputs: sums of a row's blocks
# are multiplied with a digit of it, and with the next one.
ROWS, FINE_ROWS, BLOCKS8, BLOCKS4, OFFSET_BLOCKS4 = (
    "int8 rows",
    "int8 rows, inputs of two bytes",
    "int8 blocks",
    "int4 blocks",
    "int4 blocks with offsets",
)
FORMATS = (ROWS, FINE_ROWS, BLOCKS8, BLOCKS4, OFFSET_BLOCKS4)
ROW_FORMATS = (ROWS, FINE_ROWS)
FORMATS4 = (BLOCKS4, OFFSET_BLOCKS4)  # of 4 bits
BLOCK = 32  # inputs that share a scale
DIGITS = 2  # of 4 bits, that an offset has


def digit_blocks(blocks: int) -> int:
    """How many blocks of inputs one digit of the offsets takes in a weight of so many blocks, with all its
    digits: an input for each block of the weight's own, filled up with zeros.
    """
    return -(-blocks // (BLOCK + DIGITS))


def stored_inputs(size: int, form: str) -> int:
    """The inputs of a matrix as it is stored, of `size` that the layer has."""
    return size + DIGITS * -(-size // BLOCK**2) * BLOCK if form == OFFSET_BLOCKS4 else size


@dataclass(frozen=True)
class Precision:
    """The types of a bundle; a tensor's own record says its type."""

    weights: str  # of the weight files
    compute: str  # of hidden states, masks and what the graphs do with them
    cache: str  # of keys and values

    @staticmethod
    def uniform(dtype: str) -> "Precision":
        """One dtype for weights, computation and cache."""
        return Precision(dtype, dtype, dtype)

    def validate(self, where: str) -> None:
        """Raises FirpError for types that no graph is made in, so far any three that differ."""
        types = (self.weights, self.compute, self.cache)
        if unknown := [dtype for dtype in types if dtype not in MODEL_DTYPES]:
            raise FirpError(
                f"unknown dtype in {where}", got=", ".join(unknown), expected=" or ".join(MODEL_DTYPES)
            )
        if len(set(types)) > 1:
            got = f"weights {self.weights}, compute {self.compute}, cache {self.cache}"
            raise FirpError(f"mixed precision in {where}", got=got, expected="one type for all three")


@dataclass(frozen=True)
class LinearFormat:
    """How one weight is stored, and how far its outputs on the calibration text moved: the root mean
    square over rows of the difference's norm by the row's norm. None where it was not measured.
    """

    format: str  # one of FORMATS
    kept: bool  # the integers and scales are the checkpoint's own
    rows_error: float | None  # as int8 rows
    blocks_error: float | None  # as blocks


@dataclass(frozen=True)
class Quality:
    """The quantized bundle against the model in float32 on text that it was not calibrated on."""

    tokens: int  # that were predicted
    float_perplexity: float
    perplexity: float
    kl: float  # mean Kullback-Leibler divergence of the next token's distribution, in nats
    top1: float  # share of tokens where both rank the same token first

    @property
    def loss_percent(self) -> float:
        """By how many percent the perplexity rose."""
        return 100 * (self.perplexity / self.float_perplexity - 1)


@dataclass(frozen=True)
class Quantization:
    """What a quantized bundle's weights are."""

    method: str  # one of METHODS
    calibration_tokens: int
    linears: dict[str, LinearFormat]  # by the names of the weights
    quality: Quality | None  # None: not measured, as in a bundle that was not verified

    @property
    def takes_drafts(self) -> bool:
        """Whether a row of a chain has the same bits alone and among others, so that drafted decoding
        is plain decoding. In blocks ONNX Runtime multiplies one row by another kernel than several.
        """
        return all(linear.format in ROW_FORMATS for linear in self.linears.values())

    @property
    def formats(self) -> dict[str, str]:
        """The format of each weight."""
        return {name: linear.format for name, linear in self.linears.items()}

    @property
    def unreached(self) -> list[str]:
        """Experts that no row of the calibration text reached: they are rounded as they are."""
        errors = {name.rpartition(".")[0]: linear.rows_error for name, linear in self.linears.items()}
        return [name for name, error in errors.items() if ".experts." in name and error is None]

    def validate(self, where: str) -> None:
        """Raises FirpError for a method or a format that is unknown."""
        formats = {linear.format for linear in self.linears.values()}
        if unknown := sorted({self.method} - set(METHODS)) + sorted(formats - set(FORMATS)):
            raise FirpError(
                f"unknown quantization in {where}", got=", ".join(unknown), expected=", ".join(METHODS)
            )


def refuse_blocks(quantization: Quantization | None, asked: str) -> None:
    """Raises FirpError for drafts of a bundle that can have none. asked: what they were wanted for."""
    if quantization and not quantization.takes_drafts:
        raise FirpError(
            f"weights in blocks decode plainly ({quantization.method})",
            got=asked,
            expected="drafts that change no token",
            fix="export with --quantize int8, or none",
        )


def refuse_quantized(quantization: Quantization | None, runner: str) -> None:
    """Raises FirpError where `runner` would have to run a quantized bundle and cannot."""
    if quantization:
        raise FirpError(
            f"{runner} does not run {quantization.method} bundles",
            got=f"weights in {', '.join(sorted({each.format for each in quantization.linears.values()}))}",
            expected="a bundle that is not quantized, or the cpu backend",
            fix="export with --quantize none",
        )
