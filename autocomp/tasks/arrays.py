"""Values of whatever kind users hold (tensors, frames, lists, objects) as plain arrays of inputs and of labels."""

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.lib.recfunctions import structured_to_unstructured
from numpy.typing import NDArray

from autocomp.errors import UserError

#: How no and yes are spelled.
_YES_OR_NO = (("false", "true"), ("no", "yes"))


def plain(value: Any) -> NDArray[Any]:
    """A value as a numpy array: tensors without their gradient, device and bfloat16; sparse ones filled up."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.is_nested:
            raise TypeError("its items may be of unequal size; pad them, for example by torch.nested.to_padded_tensor")
        if value.layout is not torch.strided:
            value = value.to_dense()
        if value.is_quantized:
            value = value.dequantize()
        if value.dtype.is_floating_point and value.dtype not in (torch.float16, torch.float32, torch.float64):
            value = value.float()  # numpy has neither bfloat16 nor 8-bit floats
        return np.asarray(value.cpu().resolve_conj().resolve_neg().numpy())
    if hasattr(value, "toarray"):  # of scipy's sparse matrices
        value = value.toarray()
    return np.asarray(value)


def as_input(value: Any, what: str) -> NDArray[Any]:
    """One input or an array of them: float32, or int64 where they are whole numbers of more than 8 bits (tokens).

    8-bit integers are numbers like any others: pixels. what: names the value in an error.
    """
    if _is_picture(value):
        raise UserError(
            f"{what} is a PIL image of {value.size[0]}×{value.size[1]} pixels: expected a tensor as the network takes "
            "it, (channels, height, width) in the range that it was trained on; give the data set its transform "
            "(for example torchvision's ToTensor and Normalize)"
        )
    if isinstance(value, str | bytes):
        raise UserError(f"{what} is text: expected numbers; give token ids (integers) where the network takes those")
    if value is None:
        raise UserError(f"{what} is None: expected numbers")
    array = _to_array(value, what)
    if array.dtype == object:
        array = _from_objects(array, what)
    if array.dtype.names and all(array.dtype[name].kind in "fiub" for name in array.dtype.names):
        array = structured_to_unstructured(array)  # a table with named columns
    if array.dtype.kind in "iu" and array.dtype.itemsize > 1:
        return np.ascontiguousarray(array, dtype=np.int64)
    if array.dtype.kind in "fiub":
        with np.errstate(over="ignore"):  # what float32 cannot hold is found as infinity
            return np.ascontiguousarray(array, dtype=np.float32)
    raise UserError(f"{what} holds {_named(array.dtype)}: expected real numbers")


def as_labels(value: Any, what: str) -> NDArray[Any]:
    """Labels as an array (n, …) of numbers or bools; numbers that are spelled as text are read.

    UserError with the item where one is missing, not finite, of another shape than the others, or not a number.
    """
    array = _to_array(value, f"{what}: the labels")
    if array.dtype == object:
        array = stack([_one_label(item, index, what) for index, item in enumerate(array)], what, "label")
    if array.dtype.kind in "US":
        array = _read_numbers(array, what)
    if array.dtype.kind not in "fiub":
        raise UserError(f"{what}: the labels hold {_named(array.dtype)}: expected numbers or class indices")
    if array.dtype.kind == "f":
        if array.dtype.itemsize < 4:
            array = array.astype(np.float32)
        bad = ~np.isfinite(array)
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise UserError(
                f"{what}: the label of item {where[0]} is {array[where]}"
                + (f" at {list(where[1:])}" if len(where) > 1 else "")
                + ": expected finite numbers; leave such items out"
            )
    return np.ascontiguousarray(array)


def stack(items: Sequence[NDArray[Any]], what: str, part: str) -> NDArray[Any]:
    """Items (…) of one shape → (n, …). UserError with the first that differs from the first of all."""
    shape = items[0].shape
    for index, item in enumerate(items):
        if item.shape != shape:
            raise UserError(
                f"{what}: the {part} of item {index} has shape {item.shape}, that of item 0 {shape}: all must be of "
                f"one shape{'; resize, crop or pad them' if part == 'input' else ''}"
            )
    return np.stack(items)


def of_objects(members: Sequence[Any]) -> NDArray[Any]:
    """(n,) objects, whatever they are."""
    array = np.empty(len(members), dtype=object)
    for index, member in enumerate(members):
        array[index] = member
    return array


def check_inputs(inputs: NDArray[Any], what: str) -> None:
    """UserError where the inputs (n, …) are none, or one is not finite."""
    if len(inputs) == 0:
        raise UserError(f"{what} is empty")
    if inputs[0].size == 0:
        raise UserError(f"{what}: the inputs are empty, of shape {inputs.shape}")
    if inputs.dtype.kind == "f":
        finite = np.isfinite(inputs)
        if not finite.all():
            item = int(np.argwhere(~finite.reshape(len(inputs), -1).all(axis=1))[0, 0])
            raise UserError(f"{what}: the inputs contain NaN or infinity, first in item {item}")


def _to_array(value: Any, what: str) -> NDArray[Any]:
    """As `plain`; unequal members of a list become an array of objects."""
    if isinstance(value, list | tuple) and any(isinstance(member, torch.Tensor) for member in value):
        value = [plain(member) for member in value]
    try:
        array = plain(value)
    except ValueError:  # members of unequal shape
        array = of_objects(value)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{what}: {type(value).__name__} cannot be made an array: {error}") from None
    masked = getattr(value, "mask", None)
    if isinstance(value, np.ma.MaskedArray) and np.any(masked):
        raise UserError(f"{what}: entries of a masked array are masked: fill them or leave such items out")
    return array


def _from_objects(array: NDArray[Any], what: str) -> NDArray[Any]:
    """Inputs that came as an array of objects: of arrays, or of numbers that a table holds as such."""
    first = array.flat[0] if array.size else 0.0
    if array.ndim == 1 and array.size and not np.isscalar(first):
        items = [as_input(item, f"{what}: the input of item {index}") for index, item in enumerate(array)]
        return stack(items, what, "input")
    try:
        return array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: the inputs are not numbers: {error}") from None


def _one_label(item: Any, index: int, what: str) -> NDArray[Any]:
    if item is None or type(item).__name__ in ("NAType", "NaTType"):
        raise UserError(f"{what}: the label of item {index} is missing ({item})")
    if isinstance(item, dict):
        keys = ", ".join(map(repr, item))
        raise UserError(
            f"{what}: the label of item {index} is a dict with the keys {keys}: expected a number or an array"
        )
    if isinstance(item, Decimal | Fraction):
        item = float(item)
    found = plain(item)
    if found.dtype == object:
        raise UserError(f"{what}: the label of item {index} is a {type(item).__name__}: expected a number or an array")
    return found


def _read_numbers(array: NDArray[Any], what: str) -> NDArray[Any]:
    text = array.astype(str)
    words = np.char.lower(np.char.strip(text))
    for no, yes in _YES_OR_NO:
        if set(np.unique(words)) <= {no, yes}:
            return words == yes
    for kind in (np.int64, np.float64):
        try:
            return text.astype(kind)
        except ValueError:
            continue
    word = next(str(entry) for entry in text.flat if not _is_number(entry))
    raise UserError(
        f"{what}: the labels are text such as {word!r}: give class indices from 0 on, in the order of the network's "
        "outputs; 0 and 1 for one output"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_picture(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "PIL" and hasattr(value, "size")


def _named(dtype: np.dtype[Any]) -> str:
    return {"c": "complex numbers", "M": "dates", "m": "durations", "U": "text", "S": "text"}.get(
        dtype.kind, f"values of type {dtype}"
    )
