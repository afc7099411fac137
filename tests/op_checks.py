"""How the ops are run and held against torch's own."""

import cases
import torch
from assertions import assert_as_accurate
from torch.nn import functional as F

from v1fast import ops
from v1fast.reference._common import compute_dtype

f64, f32, bf16, f16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPES = (  # features, weight, all others
    (f64, f64, f64),
    (f32, f32, f32),
    (bf16, bf16, f32),
    (f16, f16, f32),
    (bf16, f32, f32),
    (f16, f32, f32),
    (f32, bf16, f32),
    (bf16, f16, f32),
    (f32, f64, f32),
    (f32, f32, f64),
    (bf16, bf16, f64),
)


def opcheck(op, arguments, *, traced=True):
    """``torch.library.opcheck``. Unless ``traced``, without a run through AOTAutograd with symbolic sizes, which takes
    nearly all of the time: schema, registration, and dtypes, sizes and strides of the fake are compared all the same.
    """
    names = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op, arguments, test_utils=(*names, *["test_aot_dispatch_dynamic"][: int(traced)]))


def label(value):
    return "-".join(str(d).removeprefix("torch.") for d in value) if isinstance(value, tuple) else str(value)


ON_FALLBACK = ops.paths["CPU"].startswith("the fallback")


def assert_same(got, want):
    """The same bits. On the fallback, what is computed of other images or neurons has the same values alone: it is
    chosen by their number how they are read, and the sums are torch's own. See docs/fallback.md.
    """
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if ON_FALLBACK and got.device.type == "cpu" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(got, want, **tolerance)


def cast(operands, dtype):
    return {k: None if v is None else v.detach().to(dtype) for k, v in operands.items()}


def run(function, operands, options, grad_output=None, wanted=None):
    """Output and, for a grad_output, the gradients of the operands that are wanted and there."""
    wanted = operands.keys() if wanted is None else wanted
    leaves = {
        k: v if v is None or v.requires_grad else v.detach().requires_grad_(k in wanted) for k, v in operands.items()
    }
    out = function(**leaves, **options)
    if grad_output is None:
        return out.detach(), {}
    names = [k for k in wanted if leaves[k] is not None]
    gradients = torch.autograd.grad(out, [leaves[k] for k in names], grad_output.to(out.dtype), allow_unused=True)
    return out.detach(), dict(zip(names, gradients, strict=True))


def layouts(features):
    h, w = features.shape[2:]
    yield "channels-first", features.contiguous()
    yield "channels-last", features.contiguous(memory_format=torch.channels_last)
    yield "every other channel", torch.repeat_interleave(features, 2, 1)[:, ::2]
    yield "a window", F.pad(features, (1, 2, 3, 1))[:, :, 3 : 3 + h, 1 : 1 + w]
    yield "transposed", features.transpose(2, 3).contiguous().transpose(2, 3)
    yield "a slice of the batch", features.repeat_interleave(2, 0)[::2].contiguous(memory_format=torch.channels_last)


AS_LAYERS_KEEP_WEIGHTS = "channel after channel, as layers keep them"


def weight_layouts(weight):
    """Layouts of [N, C]."""
    columns = weight.t().contiguous()
    yield "neuron after neuron", weight.contiguous()
    yield AS_LAYERS_KEEP_WEIGHTS, columns.t()
    yield "every third channel", weight.repeat_interleave(3, 1)[:, ::3]
    yield "every third neuron", weight.repeat_interleave(3, 0)[::3]
    yield "channel after channel, every third", columns.repeat_interleave(3, 0)[::3].t()
    yield "channel after channel, every third neuron", columns.repeat_interleave(3, 1)[:, ::3].t()
    yield "some of more channels", F.pad(weight, (3, 2))[:, 3 : 3 + weight.shape[1]]


WEIGHT_CASES = (
    cases.PLAIN,
    cases.Case("ordered by place, in tiles", B=4, C=37, H=7, W=9, N=150),
    cases.Case("one channel", C=1),
    cases.Case("one neuron", N=1),
    cases.Case("no neuron", N=0),
    cases.Case("no image", B=0),
)
WEIGHT_DTYPES = [(f32, f32, f32), (f32, bf16, f32), (bf16, f16, f32), (f32, f64, f32), (f32, f32, f64)]


def assert_takes_weights_of_any_layout(function, operands, options, grad_output):
    """Results are the same bits, and the gradient of the weights is laid out as ``torch.empty_like`` of them."""
    want = run(function, operands, options, grad_output)
    for name, weight in weight_layouts(operands["weight"]):
        assert weight.equal(operands["weight"]), name
        got = run(function, operands | {"weight": weight}, options, grad_output)
        torch.testing.assert_close(got, want, rtol=0, atol=0, msg=name)
        assert got[1]["weight"].stride() == torch.empty_like(weight).stride(), name
        assert all(v.is_contiguous() for k, v in got[1].items() if k not in ("features", "weight")), name
    weight = operands["weight"]
    for one in (weight[:1], weight[:, :1], weight[:1, :1]) if weight.numel() else ():
        expanded = one.expand_as(weight)
        got = run(function, operands | {"weight": expanded}, options, grad_output)
        want = run(function, operands | {"weight": expanded.contiguous()}, options, grad_output)
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        assert got[1]["weight"].stride() == torch.empty_like(expanded).stride()


def rescale_error(own, exact):
    if own is None:
        return None
    return exact + (own.double() - exact) * torch.finfo(f64).eps / torch.finfo(f32).eps


def assert_as_accurate_as_eager(results, operands, eager_run):
    """Output and gradients of a call, in the operands' dtypes.

    Args:
        results: what ``run`` returns.
        operands: by name.
        eager_run: called with a dtype, returns the results of torch's own ops in it.
    """
    got, got_grads = results
    own, own_grads = eager_run(f32)
    exact, exact_grads = eager_run(f64)
    if compute_dtype(*operands.values()) == f64:  # nothing is more exact: float32's error, in float64's units
        own, own_grads = rescale_error(own, exact), {k: rescale_error(v, exact_grads[k]) for k, v in own_grads.items()}
    assert_as_accurate(got, own.to(got.dtype), exact, "output")
    for name, gradient in got_grads.items():
        want = exact_grads[name]
        want = torch.zeros_like(want if want is not None else operands[name]) if want is None else want
        mine = own_grads[name]
        mine = torch.zeros_like(want) if mine is None else mine.to(operands[name].dtype)
        assert gradient is not None, f"d_{name} is missing"
        assert gradient.dtype == operands[name].dtype
        assert_as_accurate(gradient, mine, want, f"d_{name}")
