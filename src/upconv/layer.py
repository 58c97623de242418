"""What a layer is, apart from the framework that holds its parameters.

`upconv.linen` and `upconv.nnx` declare parameters in their frameworks' ways; what the parameters
are and what the layer makes of them is said here once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from upconv import functional, geometry
from upconv.errors import noted
from upconv.geometry import Size
from upconv.initializers import Initializer, check_strides, glorot_uniform
from upconv.rules import Constraint, Regularizer, Rule, check_callable

__all__ = ["Activation", "Ints", "Layer", "Parameter"]

Ints = int | Sequence[int]
Activation = Callable[[jax.Array], jax.Array]

# An input so long that every crop leaves some of the output: arguments are checked against it.
LONG = 1 << 62


class Parameter(NamedTuple):
    """What a layer declares of one parameter."""

    name: str
    shape: tuple[int, ...]
    initializer: Initializer
    rule: Rule

    def initial(self, key: jax.Array, dtype: DTypeLike, unboxed: Callable[[Any], Any]) -> Any:
        """What the initializer gives: an array, or one in a box that `unboxed` takes it out of.

        Raises:
          TypeError: if it is no array but a function, which an initializer's maker gives.
          ValueError: if it has another shape or dtype than it was asked for.
        """
        with noted(f"in the {self.name}_initializer, {self.initializer!r}, for {self.shape}"):
            value = self.initializer(key, self.shape, dtype)
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        array = unboxed(value)
        if callable(array):
            raise TypeError(
                f"{self.name}_initializer must return an array, got another function from "
                f"{self.initializer!r}: call it first"
            )
        given = jnp.shape(array), jax.dtypes.canonicalize_dtype(jnp.result_type(array))
        if given != (self.shape, dtype):
            raise ValueError(
                f"{self.name}_initializer must return an array of shape {self.shape} and dtype "
                f"{dtype}, got {given[1]}{list(given[0])} from {self.initializer!r}"
            )
        return value


@dataclasses.dataclass(frozen=True)
class Layer:
    """The arguments of a layer, checked, and in one spelling where they have several.

    Args:
      rank: the number of spatial axes.
      filters, kernel_size, ...: as `upconv.linen.Conv2DTranspose` and `upconv.nnx.Conv2DTranspose`
        take them.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of range. Both name the argument.

    >>> layer = Layer(2, filters=4, kernel_size=5, strides=[2, 2], padding="SAME")
    >>> layer.kernel_size, layer.strides, layer.padding
    ((5, 5), (2, 2), 'same')
    >>> layer.output_shape((2, 8, 6, 3))
    (2, 16, 12, 4)
    """

    rank: int
    filters: int
    kernel_size: Ints
    strides: Ints = 1
    padding: geometry.Padding = "valid"
    data_format: str = "channels_last"
    activation: Activation | str | None = None
    use_bias: bool = True
    kernel_initializer: Initializer | None = None
    bias_initializer: Initializer | None = jax.nn.initializers.zeros
    kernel_regularizer: Regularizer | None = None
    bias_regularizer: Regularizer | None = None
    activity_regularizer: Regularizer | None = None
    kernel_constraint: Constraint | None = None
    bias_constraint: Constraint | None = None
    trainable: bool = True
    output_padding: Ints | None = None
    dilation_rate: Ints = 1
    groups: int = 1
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: jax.lax.PrecisionLike = None
    lowering: str = "auto"

    def __post_init__(self) -> None:
        for name, value in self._canonical().items():
            object.__setattr__(self, name, value)

    def __call__(
        self,
        inputs: ArrayLike,
        kernel: ArrayLike,
        bias: ArrayLike | None,
    ) -> jax.Array:
        """`activation(conv_transpose(inputs, kernel) + bias)`, of arrays of one dtype."""
        outputs = functional.conv_transpose(
            inputs,
            kernel,
            precision=self.precision,
            lowering=self.lowering,
            **self._geometry_arguments,
        )
        if bias is not None:
            outputs = functional.add_bias(outputs, bias, self.channel_axis)
        if self.activation is None:
            return outputs
        activated = _activation(self.activation)(outputs)
        if jnp.shape(activated) != outputs.shape:
            raise ValueError(
                f"activation must keep the shape {outputs.shape}, got {jnp.shape(activated)} from "
                f"{self.activation!r}"
            )
        return activated

    def activity_loss(self, outputs: jax.Array) -> jax.Array | None:
        """The penalty on the outputs divided by the batch size; `None` without a regularizer."""
        if self.activity_regularizer is None:
            return None
        penalty = self.activity_regularizer(outputs)
        if jnp.shape(penalty) != ():
            raise ValueError(
                f"activity_regularizer must return a scalar, got shape {jnp.shape(penalty)} from "
                f"{self.activity_regularizer!r}"
            )
        # Without images it is 0, not 0 / 0.
        return penalty / jax.core.max_dim(math.prod(outputs.shape[: -1 - self.rank]), 1)

    def input_shape(self, inputs: ArrayLike) -> tuple[int, ...]:
        """The shape of inputs that the layer takes.

        Raises:
          TypeError: if the inputs are not an array.
          ValueError: if the layer does not take them: as `output_shape`, before anything is traced.
        """
        functional.check_array("inputs", inputs)
        shape = jnp.shape(inputs)
        if len(shape) <= self.rank:
            raise ValueError(
                f"inputs must have the layer's {self.rank} spatial axes and one of channels, got "
                f"shape {shape}"
            )
        self.output_shape(shape)
        return shape

    def output_shape(self, input_shape: Sequence[Size]) -> tuple[Size, ...]:
        """The shape that the layer maps `input_shape` to.

        Raises:
          ValueError: if the layer does not take it: too few axes, no pixels, or a number of
            channels that the groups do not divide.
        """
        return functional.output_shape(
            input_shape, self.filters, self.kernel_size, **self._geometry_arguments
        )

    def parameters(self, c_in: int) -> dict[str, Parameter]:
        """What to declare for inputs of `c_in` channels, by name and in this order.

        >>> for name, parameter in Layer(1, filters=4, kernel_size=5).parameters(c_in=3).items():
        ...     print(name, parameter.shape)
        kernel (5, 4, 3)
        bias (4,)
        """
        kernel_size = cast("tuple[int, ...]", self.kernel_size)
        found = {
            "kernel": Parameter(
                "kernel",
                (*kernel_size, self.filters // self.groups, c_in),
                self.kernel_initializer or glorot_uniform(groups=self.groups),
                Rule(self.kernel_regularizer, self.kernel_constraint),
            )
        }
        if self.use_bias:
            found["bias"] = Parameter(
                "bias",
                (self.filters,),
                self.bias_initializer or glorot_uniform(),
                Rule(self.bias_regularizer, self.bias_constraint),
            )
        return found

    @property
    def channel_axis(self) -> int:
        """Where the channels are, counted from the end."""
        return -1 if self.data_format == "channels_last" else -1 - self.rank

    def check_channels(self, c_in: int, expected: int, owner: str) -> None:
        """Raises a ValueError unless inputs have as many channels as the kernel of `owner`."""
        if c_in != expected:
            raise ValueError(
                f"inputs must have {expected} channels on axis {self.channel_axis}, "
                f"as the kernel of {owner} has, got {c_in}"
            )

    @property
    def _geometry_arguments(self) -> dict[str, Any]:
        names = ("strides", "padding", "output_padding", "dilation_rate", "groups", "data_format")
        return {name: getattr(self, name) for name in names}

    def _canonical(self) -> dict[str, Any]:
        """The arguments that have several spellings, in one of them; raises if any is bad."""
        if self.rank not in (1, 2, 3):
            raise ValueError(f"rank must be 1, 2 or 3, got {self.rank!r}")
        filters = geometry.integer("filters", self.filters, minimum=1)
        groups = geometry.integer("groups", self.groups, minimum=1)
        if filters % groups:
            raise ValueError(f"groups must divide filters, got groups={groups}, filters={filters}")
        for name in ("use_bias", "trainable"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name, takes in _CALLABLES.items():
            check_callable(name, getattr(self, name), takes)
        if self.activation is not None:
            check_callable("activation", _activation(self.activation), ("outputs",))
        functional.check_lowering(self.lowering)

        rank = self.rank
        output_padding = self.output_padding
        if output_padding is not None:
            output_padding = geometry.per_axis("output_padding", output_padding, rank, minimum=0)
        fields: dict[str, Any] = {
            "filters": filters,
            "groups": groups,
            "kernel_size": geometry.per_axis("kernel_size", self.kernel_size, rank),
            "strides": geometry.per_axis("strides", self.strides, rank),
            "padding": geometry.canonical_padding(self.padding, rank),
            "output_padding": output_padding,
            "dilation_rate": geometry.per_axis("dilation_rate", self.dilation_rate, rank),
        }
        check_strides("kernel_initializer", self.kernel_initializer, fields["strides"])
        geometry.transposed(  # raises if they do not go together
            (LONG,) * rank, **{k: v for k, v in fields.items() if k != "filters"}
        )
        return {
            **fields,
            "data_format": geometry.canonical_data_format(self.data_format),
            # jnp.float32 == jnp.dtype("float32"), but their hashes differ.
            "dtype": None if self.dtype is None else _floating("dtype", self.dtype),
            "param_dtype": _floating("param_dtype", self.param_dtype),
            "precision": functional.check_precision(self.precision),
        }


# The arguments of a layer, in their order. Its rank is that of its class.
FIELDS = tuple(field.name for field in dataclasses.fields(Layer) if field.name != "rank")


def collection(trainable: bool) -> str:
    """The name of the collection that holds a layer's parameters in Flax."""
    return "params" if trainable else "non_trainable"


# What is called, and with what.
_CALLABLES = {
    "kernel_initializer": ("key", "shape", "dtype"),
    "bias_initializer": ("key", "shape", "dtype"),
    "kernel_regularizer": ("parameter",),
    "bias_regularizer": ("parameter",),
    "activity_regularizer": ("outputs",),
    "kernel_constraint": ("parameter",),
    "bias_constraint": ("parameter",),
}


def _activation(activation: Activation | str) -> Activation:
    """The function that an activation argument stands for."""
    if isinstance(activation, str):
        named = getattr(jax.nn, activation, None)
        if activation.startswith("_") or not callable(named):
            functions = [name for name in dir(jax.nn) if callable(getattr(jax.nn, name))]
            near: Sequence[str | None] = difflib.get_close_matches(activation.lower(), functions)
            near = [None] if activation.lower() == "linear" else near
            hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
            raise ValueError(
                f"activation must be callable, None or the name of a function in jax.nn, got "
                f"{activation!r}{hint}"
            )
        return named
    if not callable(activation):
        raise TypeError(
            f"activation must be callable, None or the name of a function in jax.nn, got "
            f"{activation!r}"
        )
    return activation


def _floating(name: str, value: Any) -> jnp.dtype:
    """The dtype that an argument stands for."""
    try:
        if value is None:  # NumPy's default, float64
            raise TypeError
        dtype = jnp.dtype(value)
    except TypeError:
        raise TypeError(
            f"{name} must be a dtype or the name of one, such as 'bfloat16', got {value!r}"
        ) from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating-point dtype, got {value!r}")
    return dtype
