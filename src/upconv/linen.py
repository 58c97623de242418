"""The layers for Flax linen: they hold parameters and call `upconv.conv_transpose`.

The arguments are those of `tf.layers.Conv2DTranspose`, in its order, with its defaults and its
behaviour. What a layer declares of its parameters (regularizers, constraints) is collected from a
whole model by `rules` and carried out by `upconv.transforms`; what it says of its activations is
sown in the collection `losses` and summed by `losses`.
"""

from __future__ import annotations

import dataclasses
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from flax.linen import kw_only_dataclasses
from jax.typing import ArrayLike, DTypeLike

from upconv import flax_layer, geometry
from upconv.errors import shown
from upconv.geometry import Size
from upconv.initializers import Initializer
from upconv.layer import FIELDS, Activation, Ints, Layer, Parameter, collection
from upconv.rules import Constraint, Regularizer, Rule, named_leaves, total

__all__ = [
    "Conv1DTranspose",
    "Conv2DTranspose",
    "Conv3DTranspose",
    "ConvTranspose",
    "losses",
    "rules",
]

# Whether layers put their parameters in boxes that carry the rules. Compiled functions are cached
# apart for each value, so that no box leaks into a model that uses nn.jit.
_boxing = jax.make_user_context(False)


def _optional(default: Any) -> Any:
    """A field that can only be given by keyword, in subclasses too."""
    return kw_only_dataclasses.field(default=default, kw_only=True)


class _ConvTranspose(nn.Module):
    """What the layers share: all but the number of spatial axes."""

    rank: ClassVar[int]

    filters: int
    kernel_size: Ints
    strides: Ints = 1
    padding: geometry.Padding = "valid"
    data_format: str = "channels_last"
    activation: Activation | str | None = None
    use_bias: bool = True
    kernel_initializer: Initializer | None = None
    bias_initializer: Initializer | None = nn.initializers.zeros
    kernel_regularizer: Regularizer | None = None
    bias_regularizer: Regularizer | None = None
    activity_regularizer: Regularizer | None = None
    kernel_constraint: Constraint | None = None
    bias_constraint: Constraint | None = None
    trainable: bool = True
    output_padding: Ints | None = _optional(None)
    dilation_rate: Ints = _optional(1)
    groups: int = _optional(1)
    dtype: DTypeLike | None = _optional(None)
    param_dtype: DTypeLike = _optional(jnp.float32)
    precision: jax.lax.PrecisionLike = _optional(None)
    lowering: str = _optional("auto")

    def __post_init__(self) -> None:
        layer = self._layer
        for name in FIELDS:
            object.__setattr__(self, name, getattr(layer, name))
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Upsamples.

        Args:
          inputs: `(*batch, *spatial, c_in)`, or `(*batch, c_in, *spatial)` for `channels_first`;
            zero or more batch axes.

        Returns:
          The same axes with `filters` channels and the lengths of `compute_output_shape`, in
          `dtype` or else the promoted dtype of inputs and parameters.

        Raises:
          TypeError: if the inputs are not an array.
          ValueError: if the inputs have too few axes, no pixels, or another number of channels than
            the kernel or the groups take.
        """
        layer = self._layer
        c_in = layer.input_shape(inputs)[layer.channel_axis]
        self._check_channels(layer, c_in)
        declared = layer.parameters(c_in)
        parameters = {name: self._parameter(name, p) for name, p in declared.items()}
        inputs, kernel, bias = nn.dtypes.promote_dtype(
            inputs, parameters["kernel"], parameters.get("bias"), dtype=self.dtype
        )
        outputs = layer(inputs, kernel, bias)
        if self.activity_regularizer is not None and not self.is_initializing():
            loss = layer.activity_loss(outputs)
            self.sow("losses", "activity", loss, init_fn=lambda: 0.0, reduce_fn=operator.add)
        return outputs

    @nn.nowrap
    def compute_output_shape(self, input_shape: Sequence[Size]) -> tuple[Size, ...]:
        """The shape that the layer maps `input_shape` to, without computing anything.

        Raises:
          TypeError: if a size other than that of a batch axis is unknown.
          ValueError: as calling the layer does.
        """
        layer = self._layer
        output_shape = layer.output_shape(input_shape)
        if self.scope is not None:
            self._check_channels(layer, input_shape[layer.channel_axis])
        return output_shape

    @property
    def scope_name(self) -> str:
        """The path of the module in its model, joined by `/`.

        Raises:
          ValueError: if the module is not bound: it has no place in a model until it is used.
        """
        if self.scope is None:
            raise ValueError(
                f"scope_name is not known before the layer is used: this {type(self).__name__} is "
                "not bound to a scope"
            )
        return "/".join(self.path)

    @property
    def graph(self) -> None:
        """Deprecated, as in TensorFlow: JAX has no graph that a layer could belong to."""
        message = "graph is deprecated: layers do not track a graph"
        warnings.warn(message, DeprecationWarning, stacklevel=3)  # past Flax's wrapper

    @property
    def _layer(self) -> Layer:
        """The fields, checked; Flax binds an activation that is a module only as a field."""
        return Layer(self.rank, **{name: getattr(self, name) for name in FIELDS})

    @property
    def _collection(self) -> str:
        return collection(self.trainable)

    @nn.nowrap
    def _parameter(self, name: str, parameter: Parameter) -> jax.Array:
        if not self.trainable:
            # No optimizer sees this collection, so no rule can apply to it either.
            def initial() -> jax.Array:
                return parameter.initial(self.make_rng("params"), self.param_dtype, meta.unbox)

            value = self.variable(self._collection, name, initial).value
            if jnp.shape(value) != parameter.shape:
                raise ValueError(
                    f"the {name} of {self.scope_name!r} must have the shape {parameter.shape}, "
                    f"got {jnp.shape(value)}"
                )
            return value

        if self.has_variable(self._collection, name):
            # Flax compares shapes, for which it would trace the initializer at every call.
            return self.param(name, lambda key: jnp.zeros(parameter.shape, self.param_dtype))

        def boxed(key: jax.Array) -> Any:
            value = parameter.initial(key, self.param_dtype, meta.unbox)
            if parameter.rule == Rule() or not _boxing.value:
                return value
            return _RuleBox(value, dataclasses.replace(parameter.rule, ndim=len(parameter.shape)))

        return self.param(name, boxed)

    @nn.nowrap
    def _check_channels(self, layer: Layer, c_in: int) -> None:
        if self.has_variable(self._collection, "kernel"):
            kernel = meta.unbox(self.get_variable(self._collection, "kernel"))
            if kernel.ndim == layer.rank + 2:  # else it is one of a stack
                owner = repr(self.scope_name) if self.path else f"this {type(self).__name__}"
                owner = f"{owner}, of shape {kernel.shape},"
                layer.check_channels(c_in, kernel.shape[-1], owner)


class Conv1DTranspose(_ConvTranspose):
    """`Conv2DTranspose` with one spatial axis.

    >>> layer = Conv1DTranspose(filters=4, kernel_size=16, strides=8, padding="same")
    >>> layer.compute_output_shape((2, 100, 3))
    (2, 800, 4)
    """

    rank = 1


class Conv2DTranspose(_ConvTranspose):
    """Transposed convolution over two spatial axes: `tf.layers.Conv2DTranspose` for Flax.

    `activation(conv_transpose(inputs, kernel) + bias)`, see `upconv.conv_transpose`. Parameters are
    `kernel`, of shape `(*kernel_size, filters // groups, c_in)`, and `bias`, `(filters,)`.

    Args:
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
        is sown in the collection `losses`, in `apply` and not in `init`.
      kernel_constraint: a function from the updated kernel to the one to use instead.
      bias_constraint: the same for the bias.
      trainable: `False` puts the parameters into the collection `non_trainable`, which no optimizer
        sees.
      name: the module's name.
      output_padding: by how many pixels the output is longer than with 0, an integer or one per
        spatial axis. `None` is another length than 0 for `"valid"` and `"same"`, which then give
        `strides` pixels for each of the input's at least; see `upconv.conv_transpose`.
      dilation_rate: the distance between the kernel's taps, an integer or one per spatial axis.
      groups: the number of groups that channels and filters fall into.
      dtype: of the computation; by default what inputs and parameters promote to.
      param_dtype: of the parameters.
      precision: as in `jax.lax`.
      lowering: how to compute it; see `upconv.conv_transpose`.

    Regularizers and constraints are declarations: `upconv.linen.rules` collects them, and
    `upconv.transforms.with_rules(optimizer, rules)` carries them out.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of range. Both name the argument.

    >>> layer = Conv2DTranspose(filters=4, kernel_size=5, strides=2, padding="same")
    >>> images = jnp.ones((2, 8, 6, 3))
    >>> variables = layer.init(jax.random.key(0), images)
    >>> variables["params"]["kernel"].shape
    (5, 5, 4, 3)
    >>> layer.apply(variables, images).shape
    (2, 16, 12, 4)
    """

    rank = 2


class Conv3DTranspose(_ConvTranspose):
    """`Conv2DTranspose` with three spatial axes.

    >>> layer = Conv3DTranspose(filters=4, kernel_size=3, strides=(1, 2, 2), padding="same")
    >>> layer.compute_output_shape((2, 5, 8, 6, 3))
    (2, 5, 16, 12, 4)
    """

    rank = 3


class ConvTranspose(nn.Module):
    """`flax.linen.ConvTranspose`: its fields, parameters, initial values and numbers.

    Change the import and a model computes what it did, from the same checkpoints, with faster
    gradients. See `upconv.lax.conv_transpose` for the convention, which is not the one of
    `Conv2DTranspose`: without `transpose_kernel` the kernel is flipped, its shape is
    `(*kernel_size, c_in, features)`, and explicit padding pads the dilated input.

    Args:
      features: the number of output channels.
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
        flipped, and of shape `(*kernel_size, features, c_in)`.
      promote_dtype: what gives inputs, kernel and bias a common dtype, called as
        `flax.linen.dtypes.promote_dtype` is.
      preferred_element_type: dtype of the convolution's result.

    Raises:
      TypeError: (when called) if an argument has the wrong type.
      ValueError: (when called) if an argument or a shape does not fit. Both name it.

    >>> layer = ConvTranspose(features=4, kernel_size=(5, 5), strides=(2, 2))
    >>> outputs, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 8, 6, 3)))
    >>> outputs.shape, variables["params"]["kernel"].shape
    ((2, 16, 12, 4), (5, 5, 3, 4))
    """

    features: int
    kernel_size: Ints
    strides: Ints | None = None
    padding: geometry.Padding = "SAME"
    kernel_dilation: Ints | None = None
    use_bias: bool = True
    mask: jax.Array | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: jax.lax.PrecisionLike = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    transpose_kernel: bool = False
    promote_dtype: Callable[..., Any] = nn.dtypes.promote_dtype
    preferred_element_type: DTypeLike | None = None

    @nn.compact
    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Upsamples.

        Args:
          inputs: `(*batch, *spatial, c_in)`; zero or more batch axes.

        Returns:
          `(*batch, *lengths, features)`, the lengths those of `upconv.lax.conv_transpose`, in
          `preferred_element_type`, `dtype`, or else the promoted dtype of inputs and parameters.

        Raises:
          TypeError: if an argument of the layer has the wrong type.
          ValueError: if an argument or the inputs do not fit.
        """
        c_in = flax_layer.in_features(inputs)
        features = geometry.integer("features", self.features, minimum=1)
        shape = flax_layer.kernel_shape(self.kernel_size, c_in, features, self.transpose_kernel)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        kernel = flax_layer.masked(kernel, self.mask)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (features,), self.param_dtype)
        inputs, kernel, bias = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
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


def rules(
    module: nn.Module,
    *example_inputs: Any,
    rngs: Any = None,
    method: Callable[..., Any] | str | None = None,
    **kwargs: Any,
) -> dict[str, Rule]:
    """The regularizers and constraints that a model's layers declare.

    The model is initialized abstractly, as `jax.eval_shape` does: nothing is computed. Frozen
    layers (`trainable=False`) are left out.

    Args:
      module: any Flax module, with layers of this module anywhere in it: nested, shared, or lifted
        by `nn.scan`, `nn.vmap`, `nn.remat`, `nn.jit`. Layers of nnx, behind `nnx.bridge.to_linen`,
        are not seen.
      *example_inputs: what `module.init` would get, with a `jax.ShapeDtypeStruct` in place of an
        array if you like.
      rngs: a key or a dictionary of them, as `module.init` takes it, for models that need it.
      method: the method to call, if not `__call__`.
      **kwargs: more of what `module.init` would get.

    Returns:
      A rule for each parameter that has a regularizer or a constraint, by path: the keys joined by
      `/`, relative to the collection `params`. `upconv.transforms` and `upconv.penalty` take it.

    Raises:
      TypeError: if `module` is not a Flax module, or only its class.
      ValueError: if something in the model computes with a layer's parameters, beside the layer,
        and cannot with boxes (`nn.SpectralNorm` and `nn.WeightNorm` can): while rules are
        collected, the parameters are in boxes, because Flax tells only boxes which axes its lifted
        transformations add.

    >>> from upconv.constraints import MaxNorm
    >>> decoder = nn.Sequential([
    ...     Conv2DTranspose(4, 5, strides=2, kernel_constraint=MaxNorm(2.0)),
    ...     nn.relu,
    ...     Conv2DTranspose(1, 5, strides=2),
    ... ])
    >>> for path, rule in rules(decoder, jax.ShapeDtypeStruct((2, 8, 6, 3), jnp.float32)).items():
    ...     print(path, rule.constraint)
    layers_0/kernel MaxNorm(max_value=2.0, axis=0)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an instance of flax.linen.Module, got {shown(module)}")
    rngs = jax.random.key(0) if rngs is None else rngs
    leaves, treedef = jax.tree.flatten((example_inputs, kwargs))
    # Only arrays can be made abstract; flags and the like must keep their values.
    abstract = {i: leaf for i, leaf in enumerate(leaves) if _is_array(leaf)}

    def init(rngs: Any, arrays: Mapping[int, jax.Array]) -> Any:
        filled = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        args, kwargs = jax.tree.unflatten(treedef, filled)
        return module.init(rngs, *args, method=method, **kwargs)

    try:
        with _boxing(True):
            variables = jax.eval_shape(init, rngs, abstract)
    except Exception as error:
        jax.eval_shape(init, rngs, abstract)  # raises what is wrong with the model itself
        raise ValueError(
            f"rules cannot be collected from {type(module).__name__}: something in it reads the "
            "parameters of a layer, beside the layer itself, and finds them in boxes with their "
            f"rules ({type(error).__name__}: {str(error).partition(chr(10))[0]}); write the rules "
            "by hand"
        ) from error
    boxes = named_leaves(variables.get("params", {}), _is_box)
    return {path: box.rule for path, box in boxes if _is_box(box)}


def losses(variables: Mapping[str, Any]) -> jax.Array:
    """The sum of all activity regularization that a model has sown.

    Flax drops silently what nobody asks for: `mutable` has to name `losses`, beside `batch_stats`
    and the like. Lifted transformations hand on only the collections that they are told of: without
    `variable_axes={"losses": 0, ...}`, `nn.scan` and `nn.vmap` drop what their layers sow. With it,
    every step's loss is counted, and every slice's: mapped over images, as if each were a batch.
    `nn.WeightNorm` drops whatever is sown within it. Do not pass the collection `losses` on to the
    next call: what is sown is added to it.

    Args:
      variables: what `module.apply(..., mutable=["losses"])` returns beside the outputs.

    Returns:
      A scalar, float32 at least; 0 if there is nothing in the collection `losses`.

    Raises:
      TypeError: if `variables` is not a mapping.
      ValueError: if it is the collection `losses` itself.

    >>> layer = Conv1DTranspose(2, 3, activity_regularizer=jnp.sum, bias_initializer=None)
    >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 8, 3)))
    >>> outputs, state = layer.apply(variables, jnp.ones((2, 8, 3)), mutable=["losses"])
    >>> bool(jnp.isclose(losses(state), outputs.sum() / 2))
    True
    """
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables must be a mapping of collections, got {shown(variables)}")
    if "losses" not in variables:
        sown = {path.rpartition("/")[2] for path, _ in named_leaves(variables)}
        if sown == {"activity"}:
            raise ValueError("variables must hold the collection 'losses', got what is in it")
    return total(map(jnp.sum, jax.tree.leaves(variables.get("losses", {}))))


@dataclasses.dataclass(frozen=True)
class _RuleBox(meta.AxisMetadata):
    """A parameter with its rule. Flax tells it which axes lifted transformations stack."""

    value: Any
    rule: Rule

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> _RuleBox:
        return dataclasses.replace(self, value=val)

    def add_axis(self, index: int, params: Mapping[Any, Any]) -> _RuleBox:
        return self._with_axes((*self.rule.stacked_axes, index))

    def remove_axis(self, index: int, params: Mapping[Any, Any]) -> _RuleBox:
        return self._with_axes(self.rule.stacked_axes[:-1])

    def _with_axes(self, axes: tuple[int, ...]) -> _RuleBox:
        return dataclasses.replace(self, rule=dataclasses.replace(self.rule, stacked_axes=axes))


# `nn.SpectralNorm` takes every key of a parameter's path for a dictionary's.
jax.tree_util.register_pytree_with_keys(
    _RuleBox,
    lambda box: (((jax.tree_util.DictKey("value"), box.value),), box.rule),
    lambda rule, values: _RuleBox(next(iter(values)), rule),
)


def _is_box(node: Any) -> bool:
    return isinstance(node, _RuleBox)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")
