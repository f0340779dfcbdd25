"""How a variant of a trained GPT is made, written as its parts joined by +: distilled, pruned, quantised, run.

`distilled+int8_weight_only` is a student whose weights are integers; `original` is the model as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.config import BadInput, nearest

ORIGINAL, DISTILLED, ONNX = "original", "distilled", "onnx"
PRUNED, STRUCTURED = "pruned", "structured"
INT8_DYNAMIC, INT8, INT4 = "int8_dynamic", "int8_weight_only", "int4_weight_only"
# The parts of a name in their order; of each tuple at most one.
STAGES = ((DISTILLED,), (PRUNED, STRUCTURED), (INT8_DYNAMIC, INT8, INT4), (ONNX,))
PARTS = tuple(part for stage in STAGES for part in stage)
DEFAULT = (
    "original,distilled,int8_dynamic,int8_weight_only,int4_weight_only,pruned,structured,"
    "distilled+int8_weight_only,structured+int8_weight_only,"
    "onnx,distilled+onnx,int8_dynamic+onnx,distilled+int8_dynamic+onnx,structured+int8_dynamic+onnx"
)


@dataclass(frozen=True)
class Recipe:
    """One variant: which of STAGES' parts it has, "" for none of a stage."""

    distilled: str = ""
    pruned: str = ""
    quantised: str = ""
    runtime: str = ""

    @property
    def name(self) -> str:
        """The parts joined by +; `original` if there are none."""
        return "+".join(filter(None, self.parts)) or ORIGINAL

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """The parts in the order of STAGES."""
        return self.distilled, self.pruned, self.quantised, self.runtime

    @property
    def unsupported(self) -> str:
        """Why no library here makes this variant; blank if one does."""
        if self.runtime and self.quantised not in ("", INT8_DYNAMIC):
            return f"onnxruntime quantises matrix products dynamically only; write {INT8_DYNAMIC}+onnx"
        return ""


def parse(text: str) -> list[Recipe]:
    """'original,distilled+onnx' -> the recipes in that order, each once; BadInput names the first wrong word."""
    return list(dict.fromkeys(_parse_one(word.strip()) for word in text.split(",")))


def _parse_one(name: str) -> Recipe:
    parts = [] if name == ORIGINAL else name.split("+")
    for part in parts:
        if part not in PARTS:
            raise BadInput(
                f"--variants: {part!r} is no part of a variant{nearest(part, PARTS)}; write {', '.join(PARTS)}"
            )
    found = [[part for part in parts if part in stage] for stage in STAGES]
    for stage, chosen in zip(STAGES, found, strict=True):
        if len(chosen) > 1:
            raise BadInput(f"--variants: {name}: at most one of {', '.join(stage)}")
    recipe = Recipe(*(chosen[0] if chosen else "" for chosen in found))
    if recipe.unsupported:
        raise BadInput(f"--variants: {name}: {recipe.unsupported}")
    return recipe
