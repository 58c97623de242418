"""The layers for Flax nnx: the same as in `upconv.linen`, for the API that Flax recommends.

Their first argument is the number of input channels, and they have no `name`.

What the layers of a model declare of their parameters is collected by `rules` and carried out by
`upconv.transforms`; what they say of their activations is kept in variables of the type `Loss` and
summed by `losses`.

>>> import optax
>>> from upconv.constraints import MaxNorm
>>> from upconv.transforms import with_rules
>>> model = Conv2DTranspose(3, 4, 5, strides=2, kernel_constraint=MaxNorm(1.0), rngs=nnx.Rngs(0))
>>> optimizer = nnx.Optimizer(model, with_rules(optax.adam(1e-3), rules(model)), wrt=nnx.Param)
>>> @nnx.jit
... def step(model, optimizer, x):
...     loss, gradient = nnx.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)
...     optimizer.update(model, gradient)
...     return loss
>>> step(model, optimizer, jnp.ones((2, 8, 6, 3))).shape
()
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax.typing import ArrayLike, DTypeLike

from upconv import flax_layer, geometry
from upconv.errors import shown
from upconv.geometry import Size
from upconv.initializers import Initializer
from upconv.layer import Activation, Ints, Layer, Parameter
from upconv.rules import Constraint, Regularizer, Rule, named_leaves, total

__all__ = [
    "Conv1DTranspose",
    "Conv2DTranspose",
    "Conv3DTranspose",
    "ConvTranspose",
    "Loss",
    "NonTrainable",
    "losses",
    "rules",
]

Metadata = Mapping[str, Any]
_NONE: Metadata = MappingProxyType({})


class NonTrainable(nnx.Variable):
    """A parameter of a frozen layer: `nnx.Optimizer(..., wrt=nnx.Param)` does not see it."""


class Loss(nnx.Variable):
    """The activity regularization of a layer's last call; see `losses`."""


class _ConvTranspose(nnx.Module):
    """What the layers share: all but the number of spatial axes."""

    rank: ClassVar[int]

    def __init__(
        self,
        in_features: int,
        filters: int,
        kernel_size: Ints,
        strides: Ints = 1,
        padding: geometry.Padding = "valid",
        data_format: str = "channels_last",
        activation: Activation | str | None = None,
        use_bias: bool = True,
        kernel_initializer: Initializer | None = None,
        bias_initializer: Initializer | None = nnx.initializers.zeros_init(),  # noqa: B008
        kernel_regularizer: Regularizer | None = None,
        bias_regularizer: Regularizer | None = None,
        activity_regularizer: Regularizer | None = None,
        kernel_constraint: Constraint | None = None,
        bias_constraint: Constraint | None = None,
        trainable: bool = True,
        *,
        output_padding: Ints | None = None,
        dilation_rate: Ints = 1,
        groups: int = 1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: jax.lax.PrecisionLike = None,
        lowering: str = "auto",
        kernel_metadata: Metadata = _NONE,
        bias_metadata: Metadata = _NONE,
        rngs: nnx.Rngs,
    ) -> None:
        if isinstance(activation, nnx.Module):
            raise TypeError(
                "activation must be a function: the variables of a module would not be found in "
                f"this layer; call the module on its outputs, got {type(activation).__name__}"
            )
        self.config = Layer(
            rank=self.rank,
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            trainable=trainable,
            output_padding=output_padding,
            dilation_rate=dilation_rate,
            groups=groups,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            lowering=lowering,
        )
        self.in_features = geometry.integer("in_features", in_features, minimum=1)
        if self.in_features % self.config.groups:
            raise ValueError(
                f"groups must divide in_features, got groups={groups}, in_features={in_features}"
            )
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"rngs must be an nnx.Rngs, got {shown(rngs)}")
        for name, metadata in (("kernel", kernel_metadata), ("bias", bias_metadata)):
            if not isinstance(metadata, Mapping):
                raise TypeError(f"{name}_metadata must be a mapping, got {metadata!r}")
        declared = self.config.parameters(self.in_features)
        self.kernel = self._variable(declared["kernel"], kernel_metadata, rngs)
        self.bias = nnx.data(None)
        if "bias" in declared:
            self.bias = self._variable(declared["bias"], bias_metadata, rngs)
        if activity_regularizer is not None:
            self.activity_loss = Loss(jnp.zeros((), jnp.float32))

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Upsamples.

        Args:
          inputs: `(*batch, *spatial, in_features)`, or `(*batch, in_features, *spatial)` for
            `channels_first`; zero or more batch axes.

        Returns:
          The same axes with `filters` channels and the lengths of `compute_output_shape`, in
          `dtype` or else the promoted dtype of inputs and parameters.

        Raises:
          TypeError: if the inputs are not an array.
          ValueError: if the inputs have too few axes, no pixels, or another number of channels; or
            if kernel or bias have been replaced by one of another shape.
        """
        self._check_channels(self.config.input_shape(inputs))
        declared = self.config.parameters(self.in_features)
        values = {name: self._value(parameter) for name, parameter in declared.items()}
        arrays = (inputs, values["kernel"], values.get("bias"))
        arrays = dtypes.promote_dtype(arrays, dtype=self.config.dtype)
        outputs = self.config(*arrays)
        loss = self.config.activity_loss(outputs)
        if loss is not None:
            self.activity_loss[...] = jnp.asarray(loss, jnp.float32)
        return outputs

    def compute_output_shape(self, input_shape: Sequence[Size]) -> tuple[Size, ...]:
        """The shape that the layer maps `input_shape` to, without computing anything.

        Raises:
          TypeError: if a size other than that of a batch axis is unknown.
          ValueError: as calling the layer does.
        """
        output_shape = self.config.output_shape(input_shape)
        self._check_channels(input_shape)
        return output_shape

    def _check_channels(self, input_shape: Sequence[Size]) -> None:
        c_in = input_shape[self.config.channel_axis]
        self.config.check_channels(c_in, self.in_features, f"this {type(self).__name__}")

    def _value(self, parameter: Parameter) -> jax.Array:
        value: jax.Array = getattr(self, parameter.name)[...]
        if value.shape != parameter.shape:
            raise ValueError(
                f"the {parameter.name} of this {type(self).__name__} must have the shape "
                f"{parameter.shape} that the layer declared, got {value.shape}"
            )
        return value

    def _variable(
        self, parameter: Parameter, metadata: Metadata, rngs: nnx.Rngs
    ) -> nnx.Variable[jax.Array]:
        value = parameter.initial(rngs.params(), self.config.param_dtype, _unboxed)
        if not self.config.trainable:
            # No optimizer sees this type, so no rule can apply to it either.
            return NonTrainable(value, **metadata)
        return nnx.Param(value, **metadata)


class Conv1DTranspose(_ConvTranspose):
    """`Conv2DTranspose` with one spatial axis.

    >>> layer = Conv1DTranspose(3, filters=4, kernel_size=16, strides=8, rngs=nnx.Rngs(0))
    >>> layer.compute_output_shape((2, 100, 3))
    (2, 808, 4)
    """

    rank = 1


class Conv2DTranspose(_ConvTranspose):
    """Transposed convolution over two spatial axes: `tf.layers.Conv2DTranspose` for Flax nnx.

    `activation(conv_transpose(inputs, kernel) + bias)`, see `upconv.conv_transpose`. Parameters are
    `kernel`, of shape `(*kernel_size, filters // groups, in_features)`, and `bias`, `(filters,)`.
    What was declared is kept in `config`.

    Args:
      in_features: the number of input channels.
      filters: the number of output channels.
      kernel_size: an integer, or one per spatial axis.
      strides: by how much the image grows; an integer or one per spatial axis.
      padding: `"valid"` or `"same"`, in upper or lower case; also `"same_lower"`, `"causal"`,
        `"circular"`, or how much to crop: an integer, or an integer or pair `(lo, hi)` for each
        spatial axis.
      data_format: `"channels_last"` or `"channels_first"`, in upper or lower case.
      activation: a function, or the name of one in `jax.nn`. (`gelu` and `leaky_relu` are other
        functions there than in Keras.)
      use_bias: whether to add a bias.
      kernel_initializer: `(key, shape, dtype) -> array`; `None` is TensorFlow's default, glorot
        uniform. `upconv.initializers` take the kernel's last axis as input channels;
        `jax.nn.initializers` that scale by fan-in need `in_axis=-1, out_axis=-2`.
      bias_initializer: the same for the bias, zeros by default; `None` is glorot uniform here too.
      kernel_regularizer: a function from the kernel to a penalty.
      bias_regularizer: a function from the bias to a penalty.
      activity_regularizer: a function from the outputs to a penalty. Divided by the batch size it
        is kept in the variable `activity_loss`, which every call sets: use `nnx.jit`, `nnx.grad`
        and the like. Where a function of `jax.jit` closes over the layer, nnx forbids that, as it
        does in `nnx.vmap` over inputs alone.
      kernel_constraint: a function from the updated kernel to the one to use instead.
      bias_constraint: the same for the bias.
      trainable: `False` makes the parameters `NonTrainable`, which no optimizer of `nnx.Param`
        sees.
      output_padding: by how many pixels the output is longer than with 0, an integer or one per
        spatial axis. `None` is another length than 0 for `"valid"` and `"same"`, which then give
        `strides` pixels for each of the input's at least; see `upconv.conv_transpose`.
      dilation_rate: the distance between the kernel's taps, an integer or one per spatial axis.
      groups: the number of groups that channels and filters fall into.
      dtype: of the computation; by default what inputs and parameters promote to.
      param_dtype: of the parameters.
      precision: as in `jax.lax`.
      lowering: how to compute it; see `upconv.conv_transpose`.
      kernel_metadata: of the kernel's variable, such as its sharding.
      bias_metadata: of the bias's variable.
      rngs: where the initializers' keys come from.

    Regularizers and constraints are declarations: `upconv.nnx.rules` collects them, and
    `upconv.transforms.with_rules(optimizer, rules)` carries them out.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of range. Both name the argument.

    >>> layer = Conv2DTranspose(3, filters=4, kernel_size=5, strides=2, rngs=nnx.Rngs(0))
    >>> layer.kernel.shape
    (5, 5, 4, 3)
    >>> layer(jnp.ones((2, 8, 6, 3))).shape
    (2, 19, 15, 4)
    """

    rank = 2


class Conv3DTranspose(_ConvTranspose):
    """`Conv2DTranspose` with three spatial axes.

    >>> layer = Conv3DTranspose(3, 4, kernel_size=3, strides=(1, 2, 2), rngs=nnx.Rngs(0))
    >>> layer.compute_output_shape((2, 5, 8, 6, 3))
    (2, 7, 17, 13, 4)
    """

    rank = 3


class ConvTranspose(nnx.Module):
    """`flax.nnx.ConvTranspose`: its arguments, variables, initial values and numbers.

    Change the import and a model computes what it did, from the same checkpoints, with faster
    gradients. See `upconv.lax.conv_transpose` for the convention, which is not the one of
    `Conv2DTranspose`: without `transpose_kernel` the kernel is flipped, its shape is
    `(*kernel_size, in_features, out_features)`, and explicit padding pads the dilated input.

    Args:
      in_features: the number of input channels.
      out_features: the number of output channels.
      kernel_size: one integer per spatial axis, of which there are 1 to 3; an integer for one axis.
      strides: an integer or one per spatial axis; `None` is 1.
      padding: `"SAME"`, `"VALID"`, `"CIRCULAR"`, an integer, or an integer or pair for each spatial
        axis.
      kernel_dilation: an integer or one per spatial axis; `None` is 1.
      use_bias: whether to add a bias.
      mask: multiplies the kernel; of the kernel's shape.
      dtype: of the computation; by default what inputs and parameters promote to.
      param_dtype: of the parameters.
      precision: as in `jax.lax`.
      kernel_init: `(key, shape, dtype) -> array`.
      bias_init: the same for the bias.
      transpose_kernel: whether the kernel is that of the convolution which this transposes:
        flipped, and of shape `(*kernel_size, out_features, in_features)`.
      promote_dtype: what gives inputs, kernel and bias a common dtype, called as
        `flax.nnx.nn.dtypes.promote_dtype` is.
      preferred_element_type: dtype of the convolution's result.
      rngs: where the initializers' keys come from.
      kernel_metadata: of the kernel's variable.
      bias_metadata: of the bias's variable.

    Raises:
      TypeError: if an argument has the wrong type, of most only when called.
      ValueError: if an argument or, when called, a shape does not fit. Both name it.

    >>> layer = ConvTranspose(3, 4, kernel_size=(5, 5), strides=(2, 2), rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 8, 6, 3))).shape, layer.kernel.shape
    ((2, 16, 12, 4), (5, 5, 3, 4))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Ints,
        strides: Ints | None = None,
        *,
        padding: geometry.Padding = "SAME",
        kernel_dilation: Ints | None = None,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: jax.lax.PrecisionLike = None,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        bias_init: Initializer = nnx.initializers.zeros_init(),  # noqa: B008
        transpose_kernel: bool = False,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Metadata = _NONE,
        bias_metadata: Metadata = _NONE,
    ) -> None:
        self.in_features = geometry.integer("in_features", in_features, minimum=1)
        self.out_features = geometry.integer("out_features", out_features, minimum=1)
        self.kernel_shape = flax_layer.kernel_shape(
            kernel_size, self.in_features, self.out_features, transpose_kernel
        )
        flax_layer.check_mask(mask, self.kernel_shape)
        self.kernel_size = self.kernel_shape[:-2]
        for name, value in (("strides", strides), ("kernel_dilation", kernel_dilation)):
            flax_layer.per_axis(name, value, len(self.kernel_size))  # raises if it is none
        self.strides = _hashable(strides)
        self.padding = _hashable(padding)
        self.kernel_dilation = _hashable(kernel_dilation)
        self.use_bias = use_bias
        self.mask = mask
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.transpose_kernel = transpose_kernel
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type
        kernel = kernel_init(rngs.params(), self.kernel_shape, param_dtype)
        self.kernel = nnx.Param(kernel, **kernel_metadata)
        self.bias = nnx.data(None)
        if use_bias:
            bias = bias_init(rngs.params(), (self.out_features,), param_dtype)
            self.bias = nnx.Param(bias, **bias_metadata)

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Upsamples.

        Args:
          inputs: `(*batch, *spatial, in_features)`; zero or more batch axes.

        Returns:
          `(*batch, *lengths, out_features)`, the lengths those of `upconv.lax.conv_transpose`, in
          `preferred_element_type`, `dtype`, or else the promoted dtype of inputs and parameters.

        Raises:
          TypeError: if an argument of the layer has the wrong type.
          ValueError: if an argument or the inputs do not fit.
        """
        flax_layer.in_features(inputs)
        kernel = flax_layer.masked(self.kernel[...], self.mask)
        bias = None if self.bias is None or not self.use_bias else self.bias[...]
        inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        return flax_layer.conv_transpose(
            inputs,
            kernel,
            bias,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            transpose_kernel=self.transpose_kernel,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )


def rules(module: nnx.Module, wrt: Any = nnx.Param) -> dict[str, Rule]:
    """The regularizers and constraints that a model's layers declare.

    Frozen layers (`trainable=False`) are left out. A layer's declarations stay with the layer:
    variables that are loaded into it or assigned to it bring no others.

    Args:
      module: any nnx module, with layers of this module anywhere in it: nested, shared, abstract
        (`nnx.eval_shape`), or stacked by `nnx.vmap` and the like. Layers of linen, behind
        `nnx.bridge.ToNNX`, are not seen.
      wrt: the parameters that are trained, as `nnx.Optimizer` takes it.

    Returns:
      A rule for each parameter that has a regularizer or a constraint, by path: the keys joined by
      `/`, as in `nnx.state(module, wrt)`. `upconv.transforms` and `upconv.penalty` take it.
      Which axes stacking has added to a parameter is inferred from its shape; where that is
      ambiguous, the leading ones are assumed. If they are others (`nnx.vmap(..., out_axes=1)`), put
      `dataclasses.replace(rule, stacked_axes=(1,))` in place of the rule.

    Raises:
      TypeError: if `module` is not an nnx module.
      ValueError: if a parameter has a shape that no stack of its layers has, or if layers that
        share it declare different rules.

    >>> from upconv.constraints import MaxNorm
    >>> rngs = nnx.Rngs(0)
    >>> decoder = nnx.Sequential(
    ...     Conv2DTranspose(8, 4, 5, strides=2, kernel_constraint=MaxNorm(2.0), rngs=rngs),
    ...     nnx.relu,
    ...     Conv2DTranspose(4, 1, 5, strides=2, rngs=rngs),
    ... )
    >>> for path, rule in rules(decoder).items():
    ...     print(path, rule.constraint)
    layers/0/kernel MaxNorm(max_value=2.0, axis=0)
    """
    _check_module(module)
    if hasattr(wrt, "shape") and not isinstance(wrt, type):
        raise TypeError("wrt must be a filter of nnx, got an array: no example inputs are needed")
    declared: dict[int, list[Parameter]] = {}
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, _ConvTranspose):
            for name, parameter in layer.config.parameters(layer.in_features).items():
                declared.setdefault(id(getattr(layer, name)), []).append(parameter)
    found: dict[str, Rule] = {}
    trained = nnx.state(module, nnx.All(nnx.Not(NonTrainable), wrt))
    for path, variable in named_leaves(trained, _is_variable):
        for parameter in declared.get(id(variable), ()):
            if parameter.rule != Rule():
                rule = _stacked(parameter, path, variable.get_value().shape)
                if found.setdefault(path, rule) != rule:
                    raise ValueError(
                        f"layers that share the parameter {path!r} must declare the same rule"
                    )
    return found


def losses(module: nnx.Module) -> jax.Array:
    """The sum of the activity regularization of each layer's last call.

    Call it where the model was called, within the same `jit` or `grad`. A layer that is called
    again forgets the loss of the call before: where layers are shared, add up after each call.

    Args:
      module: any nnx module, with layers of this module anywhere in it.

    Returns:
      A scalar, float32; 0 if no layer has an activity regularizer.

    Raises:
      TypeError: if `module` is not an nnx module.

    >>> layer = Conv1DTranspose(3, 2, 3, activity_regularizer=jnp.sum, rngs=nnx.Rngs(0))
    >>> outputs = layer(jnp.ones((2, 8, 3)))
    >>> bool(jnp.isclose(losses(layer), outputs.sum() / 2))
    True
    """
    _check_module(module)
    return total(map(jnp.sum, jax.tree.leaves(nnx.state(module, Loss))))


def _check_module(module: Any) -> None:
    if not isinstance(module, nnx.Module):
        raise TypeError(f"module must be an instance of flax.nnx.Module, got {shown(module)}")


def _stacked(parameter: Parameter, path: str, shape: tuple[int, ...]) -> Rule:
    """The rule of a parameter that has become `shape` by stacking layers."""
    count = max(len(shape) - len(parameter.shape), 0)
    for axes in itertools.combinations(range(len(shape)), count):
        if parameter.shape == tuple(n for axis, n in enumerate(shape) if axis not in axes):
            ndim = len(parameter.shape)
            return dataclasses.replace(parameter.rule, stacked_axes=axes, ndim=ndim)
    raise ValueError(
        f"the parameter {path!r} must have the shape {parameter.shape} that its layer declared, "
        f"or that of a stack of such layers, got {shape}"
    )


def _unboxed(value: Any) -> Any:
    """What an initializer gives, out of the box of `nnx.with_partitioning` and the like."""
    return value.raw_value if isinstance(value, nnx.VariableMetadata) else value


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _hashable(value: Any) -> Any:
    """The same with tuples for lists and arrays, as nnx's static attributes must be."""
    return tuple(map(_hashable, value)) if geometry.is_sequence(value) else value
