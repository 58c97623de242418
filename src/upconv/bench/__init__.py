"""How fast the layer is on this machine, compared with every peer that is installed.

A peer is another library's layer of the same kind. The forward pass, the training step (loss and
both gradients) and the Hessian-vector product are timed of thirteen layers, or of others that have
groups, each peer in its native layout and compiled as its users would compile it. Times are minima
over interleaved rounds, and on a GPU those of its kernels alone; ratios are a peer's time over
ours.

    python -m upconv.bench --layers dcgan1,fcn --peers flax,torch
    python -m upconv.bench --json benchmarks/cpu.json --chart docs/images/speed.svg
    python -m upconv.bench --layers groups --peers lax,torch,torch_channels_last
    python -m upconv.bench --maps       # every way of computing each map, beside the one we take

`command` reads the options and runs the rest: `layers` says what is measured, `peers` who takes
part, `clocks` and `measuring` how times are taken, `comparing` and `maps` take them, `results`
judges them, and `report` and `chart` show them.
"""
