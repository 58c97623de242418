"""Does a test fail when the source is wrong?  The source is broken in named ways, one at a time.

    make mutations                 # all of them
    python tests/mutations.py L1   # those whose name holds a word

Each mutation is made in a copy of the checkout, and the tests that are named beside it must fail
there; they stop at the first failure, and pass without the mutation. A mutation that survives is a
test that is missing. One whose text is no longer in the source has to follow it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[1]
TIMEOUT = 600  # seconds


@dataclass(frozen=True)
class Mutation:
    """One way of being wrong.

    Attributes:
      name: what is wrong.
      module: of upconv.
      old: a text that the module holds once.
      new: what stands there instead.
      tests: what pytest is asked to run, without `tests/`: a file, and words for `-k`.
    """

    name: str
    module: str
    old: str
    new: str
    tests: tuple[str, str]

    @property
    def path(self) -> Path:
        return Path("src", "upconv", f"{self.module}.py")

    @property
    def command(self) -> list[str]:
        file, words = self.tests
        return [f"tests/{file}.py", *(["-k", words] if words else [])]

    def applied(self, text: str) -> str:
        """The module's text with the mutation."""
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.name!r} no longer applies: {self.path} holds its text "
                f"{text.count(self.old)} times:\n{self.old}"
            )
        return text.replace(self.old, self.new)


CASES = "test_functional", "test_case and 2d_pairs"
CASES_2D = "test_functional", "test_case and 2d"
GROUPS = "test_functional", "test_case and 2d_groups"
CIRCULAR = "test_functional", "test_case and 1d_circular"
BAD_INPUT = "test_bad_input", "not layers and not Layers and not rest"
VMAP = "test_transformations", "TestVmap and (2d_groups or none)"

MUTATIONS = [
    # ---- sizes
    Mutation(
        "a dilated kernel spans one tap too many",
        "geometry",
        "return d * (k - 1) + 1",
        "return d * k",
        ("test_geometry", "by_hand"),
    ),
    Mutation(
        "same crops its larger half in front",
        "geometry",
        'return total - total // 2 if self.padding == "same_lower" else total // 2',
        "return total - total // 2",
        ("test_geometry", "by_hand"),
    ),
    Mutation(
        "same_lower crops as same",
        "geometry",
        'return total - total // 2 if self.padding == "same_lower" else total // 2',
        "return total // 2",
        ("test_geometry", "by_hand"),
    ),
    Mutation(
        "explicit padding crops the other end",
        "geometry",
        "return self.padding[0]",
        "return self.padding[1]",
        ("test_geometry", "by_hand"),
    ),
    Mutation(
        "valid ends with the kernel where the stride is longer",
        "geometry",
        "return (n - 1) * self.s + max(self.span, self.s)",
        "return (n - 1) * self.s + self.span",
        ("test_geometry", "by_hand"),
    ),
    Mutation(
        "output_padding may be as long as the stride",
        "geometry",
        "if not 0 <= p < limit",
        "if not 0 <= p <= limit",
        BAD_INPUT,
    ),
    Mutation(
        "an empty output is no error",
        "geometry",
        "if isinstance(n, int) and n < 1",
        "if isinstance(n, int) and n < 0",
        BAD_INPUT,
    ),
    Mutation(
        "True is an integer",
        "geometry",
        "if isinstance(value, bool):\n            raise TypeError",
        "if False:\n            raise TypeError",
        BAD_INPUT,
    ),
    Mutation(
        "a sequence is cut to the number of axes",
        "geometry",
        '    if len(value) != rank:\n        raise ValueError(\n            f"{name} must be an',
        "    value = value[:rank]\n    if len(value) != rank:\n        raise ValueError(\n"
        '            f"{name} must be an',
        BAD_INPUT,
    ),
    # ---- the functions
    Mutation(
        "the channels of the kernel are not compared with those of x",
        "functional",
        "if channels != kernel.shape[-1]:",
        "if False:",
        BAD_INPUT,
    ),
    Mutation(
        "groups that do not divide the channels are no error",
        "functional",
        "if channels % groups != 0:",
        "if False:",
        BAD_INPUT,
    ),
    Mutation(
        "a bad dtype is swallowed",
        "functional",
        'raise TypeError(f"preferred_element_type must be a dtype, got {dtype!r}") from None',
        "return common",
        BAD_INPUT,
    ),
    Mutation(
        "the dtype asked for is dropped",
        "functional",
        "    return dtype\n\n\ndef _check_groups",
        "    return common\n\n\ndef _check_groups",
        ("test_functional", "test_mixed_dtypes"),
    ),
    Mutation(
        "the precision asked for is dropped",
        "functional",
        "check_lowering(name), check_precision(precision),",
        "check_lowering(name), None,",
        ("test_functional", "test_precision"),
    ),
    Mutation(
        "circular padding wraps round the wrong way",
        "functional",
        "jnp.roll(full, -lo, axis)",
        "jnp.roll(full, lo, axis)",
        CIRCULAR,
    ),
    Mutation(
        "conv's circular padding starts at the other end",
        "functional",
        "jnp.roll(y, lo, axis)",
        "jnp.roll(y, -lo, axis)",
        CIRCULAR,
    ),
    Mutation(
        "negative padding adds its zeros at the end",
        "functional",
        "*((n, 0, 0) for n in front)",
        "*((0, n, 0) for n in front)",
        ("test_functional", "test_case and negative_pads"),
    ),
    Mutation(
        "channels_first comes back channels last",
        "functional",
        "a = a if last else jnp.moveaxis(a, -1, 1)",
        "a = a",
        ("test_functional", "test_channels_first"),
    ),
    # ---- the maps
    Mutation(
        "a gradient is that of the other argument",
        "bilinear",
        "if to == names[unknown]",
        "if to == names[1 - unknown]",
        CASES,
    ),
    Mutation(
        "a gradient's map takes its operands in the wrong order",
        "bilinear",
        "lhs, rhs = (known[name] for name in OPERANDS[q][:2])",
        "rhs, lhs = (known[name] for name in OPERANDS[q][:2])",
        CASES,
    ),
    Mutation(
        "a gradient has the dtype of the result",
        "bilinear",
        "numerics._replace(dtype=aval.dtype)",
        "numerics",
        ("test_functional", "test_mixed_dtypes"),
    ),
    Mutation(
        "a gradient conjugates",
        "bilinear",
        "_bind(q, lhs, rhs, geometry, numerics._replace",
        "_bind(q, lhs, jnp.conj(rhs), geometry, numerics._replace",
        ("test_lax_drop_in", "test_dtypes"),
    ),
    Mutation(
        "vmap over both operands mixes the groups",
        "bilinear",
        'geometry.groups * size if role == "group" else geometry.groups',
        "geometry.groups",
        VMAP,
    ),
    Mutation(
        "vmap folds the mapped axis in as the faster part",
        "bilinear",
        "merge(move(a, 0, axis), axis)",
        "merge(move(a, 0, axis + 1), axis)",
        VMAP,
    ),
    Mutation(
        "vmap over no layers divides by zero",
        "bilinear",
        "if size == 0:",
        "if False:",
        VMAP,
    ),
    Mutation(
        "explicit sharding forgets the batch",
        "bilinear",
        'roles = ("batch", "in", "out") if geometry.groups == 1 else ("batch", "in")',
        'roles = ("in", "out") if geometry.groups == 1 else ("in",)',
        ("test_devices", "explicit_sharding"),
    ),
    Mutation(
        "filters of a group are split as the channels of all",
        "bilinear",
        'roles = ("batch", "in", "out") if geometry.groups == 1 else ("batch", "in")',
        'roles = ("batch", "in", "out")',
        ("test_devices", "explicit_sharding_of_groups"),
    ),
    Mutation(
        "the gradient of a narrow bias is summed as narrow",
        "functional",
        "wide = bias.reshape(shape).astype(accumulator(bias.dtype))",
        "wide = bias.reshape(shape)",
        ("test_functional", "gradient_of_a_narrow_bias"),
    ),
    Mutation(
        "symbolic channels are taken for known ones",
        "auto/__init__",
        "(*g.output_size, *kernel_shape)",
        "g.output_size",
        ("test_transformations", "symbolic_channels"),
    ),
    Mutation(
        "a symbolic number of groups is left to convolutions",
        "auto/__init__",
        "        return PRODUCTS\n",
        "        return CONVOLUTIONS\n",
        ("test_transformations", "symbolic_number"),
    ),
    Mutation(
        "a symbolic batch is cut into strips",
        "auto/__init__",
        "if symbolic and",
        "if False and",
        ("test_transformations", "symbolic_batch"),
    ),
    Mutation(
        "the first group is taken every time",
        "lowering/groups",
        "start = lax.mul(i, jnp.int32(width))",
        "start = lax.mul(i, jnp.int32(0))",
        ("test_functional", "test_case and groups"),
    ),
    Mutation(
        "groups of 16 bits are converted for each of them",
        "lowering/groups",
        "c.astype(accumulator(c.dtype)) for c in",
        "c for c in",
        ("test_functional", "are_converted_once"),
    ),
    Mutation(
        "taps of a depthwise kernel lie next to each other",
        "lowering/elementwise",
        "self.first + taps * self.dilation, self.dilation)",
        "self.first + taps, 1)",
        ("test_functional", "test_case and depthwise"),
    ),
    Mutation(
        "rows of a depthwise kernel lie next to each other where one is taken after another",
        "lowering/elementwise",
        "lax.mul(i, jnp.int32(axis.dilation))",
        "lax.mul(i, jnp.int32(1))",
        ("test_functional", "test_case and depthwise"),
    ),
    Mutation(
        "a depthwise kernel's gradient repeats its first stride",
        "lowering/depthwise",
        "start = lax.mul(i, jnp.int32(shifts[a].step * s))",
        "start = lax.mul(i, jnp.int32(0))",
        ("test_functional", "test_case and depthwise"),
    ),
    Mutation(
        "what lies beyond a depthwise image is taken from its end",
        "lowering/elementwise",
        "ends.append((start, size - stop, 0))",
        "ends.append((0, size - stop + start, 0))",
        ("test_functional", "test_case and depthwise"),
    ),
    Mutation(
        "a depthwise kernel's gradient has zeros between its taps",
        "lowering/depthwise",
        "apart = [1 if s == 1 else d for",
        "apart = [1 if s == 1 else 1 for",
        ("test_functional", "test_case and depthwise"),
    ),
    Mutation(
        "every row of a depthwise image is the first",
        "lowering/depthwise",
        "box(y, (i, first + j, *start), shape)",
        "box(y, (i, first, *start), shape)",
        ("test_functional", "test_case and depthwise"),
    ),
    Mutation(
        "depthwise gradients are taken as those of other narrow groups",
        "auto/cpu",
        "if a.filters == a.channels == 1:",
        "if a.filters == a.channels == 0:",
        ("test_functional", "every_way"),
    ),
    Mutation(
        "narrow groups are products of matrices",
        "auto/cpu",
        "if groups < MANY_GROUPS or pairs > few:",
        "if groups < MANY_GROUPS or pairs > 0:",
        ("test_functional", "narrow_groups_move_no_windows"),
    ),
    Mutation(
        "a narrow group is given the first channel's products for all",
        "lowering/elementwise",
        "lax.index_in_dim(c, channel, -2, keepdims=False)",
        "lax.index_in_dim(c, 0, -2, keepdims=False)",
        ("test_functional", "test_case and narrow"),
    ),
    Mutation(
        "filters of narrow groups are not moved back behind their groups",
        "lowering/elementwise",
        "return merge_last(move(y, 1, -1)).astype(num.dtype)",
        "return merge_last(move(y, 1, -2)).astype(num.dtype)",
        ("test_functional", "test_case and narrow"),
    ),
    Mutation(
        "the kernel's gradient of narrow groups leaves out the last rows",
        "lowering/parts",
        "height, of_rows = _equal(rows, strips.IMAGES // of_images)",
        "height, of_rows = _equal(rows - 1, strips.IMAGES // of_images)",
        ("test_functional", "test_case and narrow"),
    ),
    Mutation(
        "windows of narrow groups begin where the image does",
        "lowering/elementwise",
        "*((lo, hi, 0) for lo, hi in g.pads), (0, 0, 0), (0, 0, 0)])",
        "*((0, lo + hi, 0) for lo, hi in g.pads), (0, 0, 0), (0, 0, 0)])",
        ("test_functional", "test_case and narrow"),
    ),
    Mutation(
        "products of a single pixel meet",
        "lowering/__init__",
        "max(s, span) if isinstance(n, int) and n == 1 else s",
        "s",
        ("test_functional", "one_pixel_is"),
    ),
    Mutation(
        "dilated taps are multiplied with the zeros between them",
        "lowering/transposed",
        "apart = tuple(d if s == 1 else 1",
        "apart = tuple(1 if s == 1 else 1",
        ("test_functional", "zeros_between_taps"),
    ),
    Mutation(
        "a rule is first tried in the first step",
        "transforms",
        "jax.eval_shape(partial(act, path, rules[path]), param, param)",
        "pass",
        ("test_transforms", "errors_within_rules"),
    ),
    Mutation(
        "updates of another shape are broadcast",
        "transforms",
        "if update.shape != param.shape:",
        "if False:",
        ("test_transforms", "updates_that_do_not_fit"),
    ),
    Mutation(
        "an initializer may be for other strides",
        "initializers",
        "if initializer.strides != 1 and told != strides:",
        "if False:",
        ("test_bad_input", "arguments_of_layers"),
    ),
    Mutation(
        "an activation may change the shape",
        "layer",
        "if jnp.shape(activated) != outputs.shape:",
        "if False:",
        ("test_bad_input", "activation_keeps"),
    ),
    Mutation(
        "operands inside shard_map do not vary alike",
        "bilinear",
        "vary = _vma(lhs) | _vma(rhs)",
        "vary = _vma(lhs) & _vma(rhs)",
        ("test_devices", "inside_shard_map"),
    ),
    Mutation(
        "what a partitioner is to split is computed as if it were on one device",
        "bilinear",
        "platform=auto.PARTITIONED if _is_partitioned(ctx) else platform",
        "platform=platform",
        ("test_devices", "plain_convolution"),
    ),
    # ---- their lowerings
    Mutation(
        "the partitioner is given convolutions of groups",
        "auto/__init__",
        'CONVOLUTIONS._replace(correlate_kernel="matmul")',
        "CONVOLUTIONS",
        ("test_devices", "groups_where_no"),
    ),
    Mutation(
        "a flipped kernel",
        "lowering/transposed",
        "lax.rev(swapped(w, g), range(g.rank)),",
        "swapped(w, g),",
        CASES,
    ),
    Mutation(
        "phases in reverse",
        "lowering/phases",
        "    w = lax.rev(w, range(0, 2 * r, 2))\n",
        "",
        CASES,
    ),
    Mutation(
        "a lost group",
        "lowering/windowed",
        "        rhs_dilation=g.dilation_rate,\n        groups=g.groups,\n    )\n\n\ndef blocks",
        "        rhs_dilation=g.dilation_rate,\n        groups=1,\n    )\n\n\ndef blocks",
        GROUPS,
    ),
    Mutation(
        "conv takes its taps next to each other",
        "lowering/windowed",
        "        rhs_dilation=g.dilation_rate,\n        groups=g.groups,\n    )\n\n\ndef blocks",
        "        groups=g.groups,\n    )\n\n\ndef blocks",
        ("test_functional", "test_case and 1d_dilation"),
    ),
    Mutation(
        "sums of 16 bits in 16 bits",
        "lowering/numerics",
        "return jnp.dtype(jnp.float32) if narrow else dtype",
        "return dtype",
        ("test_functional", "16_bits"),
    ),
    Mutation(
        "results are computed in the precision that they are asked for",
        "lowering/__init__",
        "total = _wider(num.dtype, common)",
        "total = num.dtype",
        ("test_functional", "test_mixed_dtypes"),
    ),
    Mutation(
        "a convolution is left to crop and pad at once",
        "lowering/convolution",
        "elif set(dilation) == {1} and any(lo < 0 for lo, _ in padding):",
        "elif False:",
        ("test_functional", "begins_beyond"),
    ),
    Mutation(
        "integers widen round a circle",
        "functional",
        "full = full.sum(axis, dtype=full.dtype)",
        "full = full.sum(axis)",
        ("test_functional", "keep_their_width"),
    ),
    Mutation(
        "a name for the transposed convolution fixes its gradients too",
        "lowering/__init__",
        '"subpixel": {"conv_transpose": "subpixel"},',
        '"subpixel": CONVOLUTIONS._replace(conv_transpose="subpixel")._asdict(),',
        ("test_functional", "leaves_the_gradients"),
    ),
    Mutation(
        "any attribute called value is a box",
        "rules",
        "and beneath[path[:-1]] == 1",
        "",
        ("test_transforms", "called_value"),
    ),
    Mutation(
        "a GPU is given convolutions of integers",
        "auto/cuda",
        "return PRODUCTS  # cuDNN's convolutions of integers are for inference",
        "pass",
        ("test_cuda", "integers"),
    ),
    Mutation(
        "a GPU multiplies integers of 8 bits",
        "lowering/__init__",
        "total = total if total.itemsize >= 4 else jnp.dtype(jnp.int32)",
        "pass",
        ("test_cuda", "narrow_integers"),
    ),
    Mutation(
        "a GPU is given volumes",
        "auto/cuda",
        'return "planes" if a.g.rank == 3 and a.g.groups == 1 else way',
        "return way",
        ("test_cuda", "volumes"),
    ),
    Mutation(
        "a GPU is given dilated kernel gradients",
        "auto/cuda",
        "if a.products <= most or max(a.g.dilation_rate) > 1:",
        "if a.products <= most:",
        ("test_cuda", "dilated"),
    ),
    Mutation(
        "a GPU is given kernels larger than their images",
        "auto/cuda",
        "a.filters <= FEW_FILTERS or a.kernel_is_larger or",
        "a.filters <= FEW_FILTERS or",
        ("test_cuda", "larger_than"),
    ),
    Mutation(
        "presets of algorithms that no CPU has reach products",
        "lowering/products",
        'refused = num.platform == "cpu" and isinstance(num.precision, presets)',
        "refused = False",
        ("test_functional", "presets"),
    ),
    Mutation(
        "nnx has rules for what is not trained",
        "nnx",
        "nnx.state(module, nnx.All(nnx.Not(NonTrainable), wrt))",
        "nnx.state(module, nnx.Not(NonTrainable))",
        ("test_nnx", "what_is_trained"),
    ),
    Mutation(
        "projections are rounded to the update's dtype",
        "transforms",
        "return (allowed - param).astype(dtype)",
        "return (allowed - param).astype(update.dtype)",
        ("test_transforms", "less_precision"),
    ),
    Mutation(
        "a norm that is no number is zero",
        "constraints",
        "zero = squared == 0",
        "zero = ~(squared > 0)",
        ("test_constraints", "spoils"),
    ),
    Mutation(
        "windows of the image start at its edge",
        "lowering/products",
        "ends[axis] = (*g.stride_pads[a], 0)",
        "ends[axis] = (0, sum(g.stride_pads[a]), 0)",
        CASES,
    ),
    Mutation(
        "phases beside each other are cropped as those apart",
        "lowering/transposed",
        "starts = [lo % of_axis[0].stride",
        "starts = [0 * of_axis[0].stride",
        CASES_2D,
    ),
    Mutation(
        "a phase apart ends with the output, rounded down",
        "lowering/phases",
        "Run(r, s, 1, first, first + cdiv(out, s))",
        "Run(r, s, 1, first, first + out // s)",
        CASES_2D,
    ),
    Mutation(
        "the first of phases that are copied is lost",
        "lowering/phases",
        "for start, stop in ((0, 1), (1, z.shape[axis])):",
        "for start, stop in ((1, z.shape[axis]),):",
        CASES_2D,
    ),
    Mutation(
        "planes in their order count as all planes",
        "lowering/axes",
        "np.array_equal(row.ravel(), np.arange(y.shape[axis]))",
        "row.size == y.shape[axis]",
        ("test_functional", "test_case and 3d"),
    ),
    Mutation(
        "a window of more pixels than the image is left to XLA",
        "lowering/convolution",
        "math.prod(rhs.shape[:-2]) > math.prod(lhs.shape[1:-1])",
        "math.prod(rhs.shape[:-2]) > math.prod(lhs.shape[1:-1]) * 1000",
        ("test_functional", "window_of_more"),
    ),
    Mutation(
        "planes are taken one further",
        "lowering/convolution",
        "np.arange(k) * d - lo)",
        "np.arange(k) * d - lo + 1)",
        CASES_2D,
    ),
    Mutation(
        "a phase of planes takes the taps of another",
        "lowering/products",
        "t * g.dilation_rate[0] % s == phase",
        "t % s == phase",
        ("test_functional", "test_case and 3d"),
    ),
    Mutation(
        "a phase of planes begins where the output does",
        "lowering/products",
        "divmod(g.crop[0] + i, s)",
        "divmod(i, s)",
        ("test_functional", "test_case and 3d"),
    ),
    Mutation(
        "rules of one layer are for stacks of layers, too",
        "transforms",
        "param.ndim != rule.ndim + len(rule.stacked_axes)",
        "param.ndim < rule.ndim",
        ("test_transforms", "knows_its_axes"),
    ),
    Mutation(
        "a parameter of another shape is computed with",
        "nnx",
        "value.shape != parameter.shape",
        "value.ndim != len(parameter.shape)",
        ("test_nnx", "another_shape"),
    ),
    Mutation(
        "taps are planes next to each other",
        "lowering/filters",
        "np.arange(k)[:, None] * d + np.arange(n)",
        "np.arange(k)[:, None] + np.arange(n)",
        ("test_functional", "test_case and 3d_dilation"),
    ),
    Mutation(
        "images of one operand alone are reversed",
        "lowering/filters",
        "lax.rev(move(x, 0, -2), (x.ndim - 2,)),",
        "move(x, 0, -2),",
        CASES_2D,
    ),
    Mutation(
        "pieces repeat the edge of the image",
        "lowering/strips",
        "        part = lax.select(there, part, jnp.zeros_like(part))\n",
        "",
        CASES_2D,
    ),
    Mutation(
        "the first piece is taken every time",
        "lowering/strips",
        "lax.dynamic_index_in_dim(a, i, ",
        "lax.dynamic_index_in_dim(a, i * 0, ",
        CASES_2D,
    ),
    Mutation(
        "strips do not meet what is next to them",
        "lowering/strips",
        "met = (rows - 1) * s + g.span[0]",
        "met = rows * s",
        CASES_2D,
    ),
    Mutation(
        "taps of a window of phases stay in reverse",
        "lowering/filters",
        "w = lax.rev(w, range(1, r + 1)).reshape(",
        "w = w.reshape(",
        CASES_2D,
    ),
    Mutation(
        "phases of the output start at its edge",
        "lowering/phases",
        "(lo - a.first * a.stride, a.stop * a.stride - lo - out, 0)",
        "(0, (a.stop - a.first) * a.stride - out, 0)",
        CASES_2D,
    ),
    Mutation(
        "a window of phases moves to where a dilated kernel has no tap",
        "lowering/filters",
        "g.phase_taps)),\n        strides=g.dilation_rate,",
        "g.phase_taps)),\n        strides=(1,) * r,",
        ("test_functional", "test_case and dilation"),
    ),
    Mutation(
        "taps of a dilated kernel are sought in one phase",
        "auto/cpu",
        "if one_phase and short and",
        "if short and",
        ("test_functional", "test_case and dilation"),
    ),
    Mutation(
        "taps of a long kernel are gathered next to each other",
        "lowering/products",
        "np.arange(g.kernel_size[a]) * g.dilation_rate[a]",
        "np.arange(g.kernel_size[a])",
        ("test_functional", "test_case and far_apart"),
    ),
    Mutation(
        "filters and images of a dilated kernel's gradient change places",
        "lowering/filters",
        "w.reshape(-1, co, *w.shape[1:]), 1, -2)",
        "w.reshape(-1, co, *w.shape[1:]), 1, -1)",
        ("test_functional", "test_case and dilation"),
    ),
    Mutation(
        "the products of a long kernel are added up",
        "auto/cpu",
        "a.overlap > MANY_PARTS",
        "a.overlap > 9 * MANY_PARTS",
        ("test_functional", "soon_compiled"),
    ),
    Mutation(
        "windows of a long kernel are made of slices",
        "lowering/products",
        "g.phase_taps[a] > MANY_STRIDES",
        "g.phase_taps[a] > 99 * MANY_STRIDES",
        ("test_functional", "soon_compiled"),
    ),
    Mutation(
        "a loop over many filters is left to LLVM",
        "lowering/products",
        'if num.platform == "cpu" and _is_slow_to_compile(p, g)',
        'if num.platform == "gpu" and _is_slow_to_compile(p, g)',
        ("test_functional", "many_filters"),
    ),
    Mutation(
        "a stretched convolution takes every row",
        "lowering/convolution",
        "return 2 * steps[0], steps[1]",
        "return steps[0], steps[1]",
        CASES_2D,
    ),
    Mutation(
        "phases begin where the full output does",
        "lowering/phases",
        "Run(r, s, 1, first, first + cdiv(out, s))",
        "Run(r, s, 1, 0, cdiv(out, s))",
        CASES_2D,
    ),
    Mutation(
        "blocks are summed in place",
        "lowering/windowed",
        "            (0, *shift, 0, *shift, 0),\n",
        "            (0, *(0,) * r, 0, *shift, 0),\n",
        ("test_functional", "test_case and 2d_many_filters"),
    ),
    Mutation(
        "zeros before the full output are left to XLA, which misreads them",
        "functional",
        "if isinstance(lo, int) and lo < 0 else 0",
        "if isinstance(lo, int) and lo < -9 else 0",
        ("test_functional", "test_case and 2d_crop_and_pad"),
    ),
    # ---- other people's conventions
    Mutation(
        "lax's kernel is not flipped",
        "lax",
        "flip(kernel, tuple(range(kernel.ndim - 2)))",
        "kernel",
        ("test_lax_drop_in", "test_random_calls"),
    ),
    Mutation(
        "Flax's circular padding is aligned as ours",
        "flax_layer",
        "-1 if transpose_kernel and k > s",
        "0 if transpose_kernel and k > s",
        ("test_flax_drop_in", "test_circular_odd_and_even"),
    ),
    # ---- the layers
    Mutation(
        "a layer's precision stays with the layer",
        "layer",
        "            precision=self.precision,\n",
        "",
        ("test_public", "tell_their_maps"),
    ),
    Mutation(
        "a layer's lowering stays with the layer",
        "layer",
        "            lowering=self.lowering,\n",
        "",
        ("test_public", "tell_their_maps"),
    ),
    Mutation(
        "the precision of linen's layer like Flax's stays with it",
        "linen",
        "            precision=self.precision,",
        "            precision=None,",
        ("test_public", "tell_their_maps"),
    ),
    Mutation(
        "the precision of nnx's layer like Flax's stays with it",
        "nnx",
        "            precision=self.precision,",
        "            precision=None,",
        ("test_public", "tell_their_maps"),
    ),
    Mutation(
        "a subclass of a layer is written as its base",
        "serialization",
        "if type(layer) is cls",
        "if isinstance(layer, cls)",
        ("test_serialization", "only_layers"),
    ),
    Mutation(
        "a subclass of a record is written as its base",
        "serialization",
        "if type(value) is cls",
        "if isinstance(value, cls)",
        ("test_serialization", "no_name"),
    ),
    Mutation(
        "a custom object is taken for its equal",
        "serialization",
        "if known is value",
        "if known == value",
        ("test_serialization", "custom_object"),
    ),
    Mutation(
        "regularizers are given parameters of 16 bits",
        "transforms",
        "rule, at_least_float32(param), keep=False",
        "rule, param, keep=False",
        ("test_transforms", "float32_at_least"),
    ),
    Mutation(
        "masked parameters are penalized",
        "transforms",
        "if path in rules and not _is_hole(param)",
        "if path in rules",
        ("test_transforms", "holes"),
    ),
    Mutation(
        "orthogonal kernels have no gain",
        "initializers",
        "orthogonal(self.gain)",
        "orthogonal()",
        ("test_initializers", "orthogonal"),
    ),
    Mutation(
        "activity regularization is not divided by the batch",
        "layer",
        "return penalty / jax.core.max_dim(math.prod(outputs.shape[: -1 - self.rank]), 1)",
        "return penalty",
        ("test_linen", "divided_by_the_batch"),
    ),
    Mutation(
        "the bias is added to the last axis, whatever the data format",
        "functional",
        "shape[channel_axis] = -1",
        "shape[-1] = -1",
        ("test_linen", "test_values"),
    ),
    Mutation(
        "a frozen layer has parameters",
        "linen",
        "value = self.variable(self._collection, name, initial).value",
        "value = self.param(name, lambda _: initial())",
        ("test_linen", "trainable_false"),
    ),
    Mutation(
        "losses are sown while initializing",
        "linen",
        "self.activity_regularizer is not None and not self.is_initializing()",
        "self.activity_regularizer is not None",
        ("test_linen", "divided_by_the_batch"),
    ),
    Mutation(
        "linen's dtype is dropped",
        "linen",
        'parameters.get("bias"), dtype=self.dtype',
        'parameters.get("bias"), dtype=None',
        ("test_linen", "test_dtypes"),
    ),
    Mutation(
        "an nnx layer that is frozen can be trained",
        "nnx",
        "return NonTrainable(value, **metadata)",
        "return nnx.Param(value, **metadata)",
        ("test_nnx", "trainable_false"),
    ),
    Mutation(
        "nnx finds stacked layers where there are none",
        "nnx",
        "count = max(len(shape) - len(parameter.shape), 0)",
        "count = 1",
        ("test_nnx", "test_rules_of_a_model"),
    ),
    Mutation(
        "an unknown lowering is found when the layer is used",
        "layer",
        "        functional.check_lowering(self.lowering)\n",
        "",
        ("test_bad_input", "arguments_of_layers and fft"),
    ),
    Mutation(
        "an initializer may return a bias that is broadcast",
        "layer",
        "if given != (self.shape, dtype):",
        "if False:",
        ("test_bad_input", "an_initializer"),
    ),
    Mutation(
        "the activity of no images divides by zero",
        "layer",
        "jax.core.max_dim(math.prod(outputs.shape[: -1 - self.rank]), 1)",
        "math.prod(outputs.shape[: -1 - self.rank])",
        ("test_bad_input", "no_images"),
    ),
    # ---- rules
    Mutation(
        "projection before the update",
        "transforms",
        "optax.chain(add_regularization(rules), optimizer, project(rules))",
        "optax.chain(add_regularization(rules), project(rules), optimizer)",
        ("test_transforms", "with_rules"),
    ),
    Mutation(
        "regularization after the optimizer",
        "transforms",
        "optax.chain(add_regularization(rules), optimizer, project(rules))",
        "optax.chain(optimizer, add_regularization(rules), project(rules))",
        ("test_transforms", "with_rules"),
    ),
    Mutation(
        "a constraint sees the parameter without its update",
        "transforms",
        "wanted = param + at_least_float32(update)",
        "wanted = param",
        ("test_transforms", "projection"),
    ),
    Mutation(
        "a regularizer may return an array",
        "transforms",
        "if result.shape != ():",
        "if False:",
        ("test_transforms", "must_return_a_scalar"),
    ),
    Mutation(
        "a constraint may change the shape",
        "transforms",
        "if (result.shape, result.dtype) != (x.shape, x.dtype):",
        "if False:",
        ("test_transforms", "must_keep_shape"),
    ),
    Mutation(
        "a rule that matches no parameter is ignored",
        "transforms",
        "for path in sorted(rules.keys() - set(present)):",
        "for path in ():",
        ("test_transforms", "without_a_parameter"),
    ),
    Mutation(
        "a constraint acts on stacked layers as on one",
        "transforms",
        "    for axis in rule.stacked_axes:\n        f =",
        "    for axis in ():\n        f =",
        ("test_transforms", "stacked_rules"),
    ),
    Mutation(
        "L1 has a gradient at zero",
        "regularizers",
        "return x * jnp.sign(x)",
        "return jnp.abs(x)",
        ("test_regularizers", "gradient_at_zero"),
    ),
    Mutation(
        "L2 has the half of other libraries",
        "regularizers",
        "return self.l2 * jnp.sum(",
        "return 0.5 * self.l2 * jnp.sum(",
        ("test_regularizers", "test_values"),
    ),
    Mutation(
        "a norm of zero has no finite slope",
        "constraints",
        "jnp.sqrt(jnp.where(zero, 1, squared))",
        "jnp.sqrt(squared)",
        ("test_constraints", "zero_stays"),
    ),
    Mutation(
        "MaxNorm scales up, too",
        "constraints",
        "lambda norm: jnp.minimum(norm, self.max_value)",
        "lambda norm: self.max_value * jnp.ones_like(norm)",
        ("test_constraints", "small_norms or test_values"),
    ),
    Mutation(
        "fans that know no strides",
        "initializers",
        "geometry.cdiv(k, s) for k, s in zip(",
        "k for k, _ in zip(",
        ("test_initializers", "test_fans"),
    ),
    Mutation(
        "a bilinear kernel whose filters all read the first channel",
        "initializers",
        "np.tile(np.eye(filters_per_group), self.groups)",
        "np.ones((filters_per_group, c_in))",
        ("test_initializers", "bilinear_with_groups or bilinear_is"),
    ),
    Mutation(
        "a symbolic output size is taken for no size",
        "geometry",
        "return value if isinstance(value, symbolic) else integer(name, value, **rules)",
        "return integer(name, value, **rules)",
        ("test_transformations", "symbolic_output"),
    ),
    Mutation(
        "an output size may be one pixel too long",
        "geometry",
        "if not 0 <= more <= most:",
        "if not 0 <= more <= most + 1:",
        ("test_bad_input", "output_size"),
    ),
    Mutation(
        "it is not seen what a function takes",
        "rules",
        "        signature.bind(*[None] * arguments)\n",
        "        signature.bind\n",
        ("test_bad_input", "layer"),
    ),
]


# ------------------------------------------------------------------ trying them


def copy_checkout(target: Path) -> None:
    """What git knows of, and what it would."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


@contextmanager
def mutated(checkout: Path, mutation: Mutation) -> Iterator[None]:
    path = checkout / mutation.path
    text = path.read_text()
    path.write_text(mutation.applied(text))
    try:
        yield
    finally:
        path.write_text(text)


def run_tests(checkout: Path, command: Sequence[str]) -> tuple[int, str]:
    """Pytest's exit status in a copy of the checkout, and what it said."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "UPCONV_REQUIRE_PARITY": "",
    }
    options = ["-x", "-q", "--numprocesses=0", "-p", "no:cacheprovider", "--no-header"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *command],
        cwd=checkout, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def verdict(status: int, said: str) -> str:
    """What became of a mutation, by pytest's exit status or the signal that ended it."""
    if status == 1:  # also if the tests could not be imported, which proves nothing
        return "NOT TRIED: no test ran" if "ERROR collecting" in said else "caught"
    if status < 0:
        return "caught: the process was ended"
    return {0: "SURVIVED", 5: "NO SUCH TEST"}.get(status, f"NOT TRIED: pytest exited with {status}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only mutations whose name holds one of these")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4))
    parser.add_argument(
        "--trust", action="store_true", help="take it that the tests pass without mutations"
    )
    arguments = parser.parse_args()
    chosen = [
        m for m in MUTATIONS if not arguments.words or any(w in m.name for w in arguments.words)
    ]
    for mutation in chosen:
        mutation.applied((ROOT / mutation.path).read_text())

    with tempfile.TemporaryDirectory() as scratch:
        free: Queue[Path] = Queue()
        for i in range(arguments.jobs):
            copy_checkout(Path(scratch, str(i)))
            free.put(Path(scratch, str(i)))

        def attempt(mutation: Mutation | None, command: Sequence[str]) -> tuple[str, float, str]:
            checkout, start = free.get(), time.monotonic()
            try:
                if mutation is None:
                    status, said = run_tests(checkout, command)
                else:
                    with mutated(checkout, mutation):
                        status, said = run_tests(checkout, command)
            finally:
                free.put(checkout)
            return verdict(status, said), time.monotonic() - start, said

        with ThreadPoolExecutor(arguments.jobs) as pool:
            commands = list(dict.fromkeys(tuple(m.command) for m in chosen))
            commands = [] if arguments.trust else commands
            plain = pool.map(lambda command: attempt(None, command), commands)
            for command, (result, seconds, said) in zip(commands, plain, strict=True):
                print(f"{seconds:5.0f} s  unmutated  {' '.join(command)}", flush=True)
                if result != "SURVIVED":
                    print(f"these tests do not pass as they are ({result}):\n{said}")
                    return 1
            results = pool.map(lambda mutation: attempt(mutation, mutation.command), chosen)
            wrong = []
            for mutation, (result, seconds, said) in zip(chosen, results, strict=True):
                print(f"{seconds:5.0f} s  {result}  {mutation.name}", flush=True)
                if not result.startswith("caught"):
                    wrong.append(f"{mutation.name}: {result}\n{said}")
    print(*wrong, sep="\n")
    print(f"{len(chosen) - len(wrong)} of {len(chosen)} mutations are caught")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
