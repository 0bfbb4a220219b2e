"""The number formats that somebody asks for, and the precision and weights that they make up."""

from __future__ import annotations

from dataclasses import dataclass, fields

from trtq.errors import UsageError
from trtq.models.option import list_options, setting
from trtq.pipeline.engine.backend import Precision
from trtq.pipeline.formats import WEIGHT_FORMATS
from trtq.pipeline.formats.scheme import WeightScheme


@dataclass(frozen=True, slots=True)
class Formats:
    """The number formats that are asked for.

    Attributes:
        int8: Build an INT8 engine (the default without --weights).
        fp8: Build an FP8 engine (E4M3), for compute capability 8.9 and newer.
        nvfp4: Build an NVFP4 engine, for compute capability 12.0 and newer: MatMul and Gemm in FP4 blocks of
            16, other layers in FP8.
        fp16: Build an FP16 engine, without quantization; no effect with --int8.
        weights: Weight-only quantization: store weights in this format and keep activations in float. With
            --int8, convolutions and large matrix multiplications are INT8, and only the other weights are
            stored in this format.
        weight_method: For int4: round to nearest, clip for the smallest squared error, GPTQ or AWQ; the last
            two need data. None: mse.
        w4a8: Store MatMul and Gemm weights as INT4 blocks and compute with INT8 activations (with --fp8:
            FP8). Each run expands the weights to 8 bits. Convolutions are INT8.
        block_size: For int4 and nf4: weights per scale. If it does not divide a weight's inputs, half of it
            is tried, and so on, down to 16. None: 64.
        double_quant: For nf4: store the scales in 8 bits.
        quantize_sensitive: Also quantize the weights of lm_head, proj_out, norm_out and classifier heads.
        weights_for: Store weights whose name or node name matches in this format instead of that of --weights
            (repeatable; the first match applies).
    """

    int8: bool = setting(False)
    fp8: bool = setting(False)
    nvfp4: bool = setting(False)
    fp16: bool = setting(False)
    weights: str | None = setting(None)
    weight_method: str | None = setting(None)
    w4a8: bool = setting(False)
    block_size: str = setting("")
    double_quant: bool = setting(False)
    quantize_sensitive: bool = setting(False)
    weights_for: tuple[str, ...] = setting((), metavar="REGEX=FORMAT")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those that are named."""
        names: tuple[Precision, ...] = ("int8", "fp8", "nvfp4", "fp16")
        return tuple(name for name in names if getattr(self, name))

    @property
    def scheme(self) -> str | None:
        """The format of weights of fewer bits; None where these are not asked for."""
        return self.weights or ("int4" if self.w4a8 else None)

    def choose_precision(self, usual: Precision | None = None) -> Precision:
        """Returns the precision of the layers.

        Args:
            usual: Where none is named; None: INT8, or float beside weights of fewer bits.

        Raises:
            UsageError: Several are named.
        """
        given = [name for name in self.precisions if name != "fp16"]
        if len(given) > 1:
            raise UsageError(
                f"{' and '.join(f'--{name}' for name in given)} contradict each other; give one of them"
            )
        if given:
            return given[0]
        if self.fp16 and self.scheme is None:
            return "fp16"
        return usual or ("weights" if self.scheme is not None and not self.w4a8 else "int8")

    def choose_weights(self) -> WeightScheme | None:
        """Returns how weights are stored in fewer bits; None where that is not asked for.

        Raises:
            UsageError: Something is asked of weights of fewer bits, and these are not, or have no such thing.
        """
        form = self.scheme
        if form is None:
            self._refuse_alone()
            return None
        scheme = WeightScheme(
            form,
            self.weight_method or ("mse" if "mse" in WEIGHT_FORMATS[form].methods else "rtn"),
            int(self.block_size or 64),
            self.double_quant,
            not self.quantize_sensitive,
            self.w4a8,
            tuple(map(_parse_other, self.weights_for)),
        )
        if self.block_size and not scheme.has_blocks:
            raise UsageError(
                f"--block-size is for int4 and nf4; {form.upper()} weights have one scale for each channel"
            )
        return scheme

    def _refuse_alone(self) -> None:
        options = list_options(Formats)
        for item in fields(self):
            if item.name not in ("w4a8", *self.precisions) and getattr(self, item.name) != item.default:
                raise UsageError(
                    f"{options[item.name].name} is for weights of fewer bits; give --weights too"
                )


def _parse_other(text: str) -> tuple[str, str]:
    pattern, _, form = text.rpartition("=")
    return pattern, form
