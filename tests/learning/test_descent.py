"""Descent along nonlocal gradients."""

import copy
import io
import itertools
import math

import pytest
import torch
from conftest import inputs, mlp, relative_error
from sklearn.datasets import load_digits
from torch import nn

import nntk
from nntk import NonlocalGradientDescent


@pytest.mark.contract
def test_a_sign_network_learns_digits():
    """Nine of ten held-out digits are right with a frozen output layer, where autograd sees zero gradients."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    torch.manual_seed(0)
    hidden = [nn.Linear(64, 32), nntk.activations.Sign(), nn.Linear(32, 32), nntk.activations.Sign()]
    model, batches = nn.Sequential(*hidden, nn.Linear(32, 10)), torch.Generator().manual_seed(0)
    model[4].requires_grad_(False)
    optimizer = NonlocalGradientDescent(model.parameters(), lr=1e-2, gamma=0.1, samples=96)
    for _ in range(600):
        batch = torch.randint(1000, (250,), generator=batches)
        optimizer.step(lambda batch=batch: nn.functional.cross_entropy(model(x[batch]), y[batch]))
    assert float((model(x[1000:]).argmax(1) == y[1000:]).double().mean()) >= 0.9


def test_the_gradient_is_that_of_a_linear_loss():
    """The estimate for <g, theta> is g within its Monte-Carlo error, and parameters are left as they were."""
    parameters = [torch.zeros(6, 5), torch.zeros(4)]
    slopes = [torch.randn(6, 5), torch.randn(4)]

    def loss():
        return sum(float((p.double() * s.double()).sum()) for p, s in zip(parameters, slopes, strict=True))

    optimizer = NonlocalGradientDescent([p.requires_grad_() for p in parameters], samples=4000, directions="rademacher")
    with torch.no_grad():
        gradients, mean = optimizer._nonlocal_gradients(parameters, loss)
    expected, actual = (torch.cat([part.flatten() for part in parts]) for parts in (slopes, gradients))
    assert relative_error(actual, expected) < 4 * math.sqrt(34 / 4000) and abs(mean) < 1e-6
    assert all(not parameter.any() for parameter in parameters)


def test_a_step_is_that_of_adam():
    """Nonlocal gradients take the place of derivatives; each group has its learning rate; frozen parameters stay."""
    x, model, copy = inputs(8, 3), mlp(3, 4, 1), mlp(3, 4, 1)
    groups = [[{"params": m[0].parameters(), "lr": 0.1}, {"params": m[2].parameters()}] for m in (model, copy)]
    model[2].bias.requires_grad_(False)
    copy[2].bias.requires_grad_(False)
    optimizer, adam = NonlocalGradientDescent(groups[0], samples=4), torch.optim.Adam(groups[1], 1e-2, eps=1e-12)
    moving = [[p for p in m.parameters() if p.requires_grad] for m in (model, copy)]
    for _ in range(3):
        with torch.no_grad():
            gradients, _ = optimizer._nonlocal_gradients(moving[0], lambda: model(x).square().mean())
        for parameter, gradient in zip(moving[1], gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        optimizer.step(lambda: model(x).square().mean())
        assert all(map(torch.equal, model.parameters(), copy.parameters()))
    assert optimizer.steps == 3 and not torch.equal(model[0].weight, mlp(3, 4, 1)[0].weight)


def test_gradients_that_parameters_hold_are_neither_used_nor_changed():
    """Also those of a frozen parameter, which a step leaves where it is."""
    weight, frozen, bare = (nn.Parameter(torch.ones(2)) for _ in range(3))
    weight.grad, frozen.grad = torch.full((2,), 5.0), torch.full((2,), 7.0)
    held = weight.grad, frozen.grad
    frozen.requires_grad_(False)
    optimizer = NonlocalGradientDescent([weight, frozen, bare], samples=4)
    optimizer.step(lambda: -weight.sum() - bare.sum())
    assert weight.grad is held[0] and frozen.grad is held[1] and bare.grad is None
    assert (held[0] == 5).all() and (held[1] == 7).all()
    assert torch.equal(frozen, torch.ones(2)) and (weight > 1).any() and not torch.equal(bare, torch.ones(2))


def test_runs_repeat_and_resume():
    """Displacements depend on the seed and the step: two runs agree, also where one resumes from a state."""
    x = inputs(8, 3)

    def run(optimizer, model, steps):
        return [optimizer.step(lambda: model(x).square().mean()) for _ in range(steps)]

    def start():
        model = mlp(3, 4, 1)
        return NonlocalGradientDescent(model.parameters(), samples=4, seed=3), model

    whole, (first, model) = run(*start(), 5), start()
    assert run(first, model, 3) == whole[:3] and len(set(whole)) == 5
    second = NonlocalGradientDescent(model.parameters(), samples=4, seed=3)
    second.load_state_dict(first.state_dict())
    assert second.steps == 3 and run(second, model, 2) == whole[3:]


HALF = (torch.float16, torch.bfloat16)


def linear_loss(parameters, slopes):
    """Return a closure with the loss <slopes, parameters>, computed in float64."""
    return lambda: sum((p.double() * s).sum() for p, s in zip(parameters, slopes, strict=True))


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_parameters_of_every_dtype_descend_like_float64(dtype, scale):
    """A quadratic loss of any scale: state is float32 or more, and the path is that of float64 but for rounding."""
    start, goal = inputs(1, 20, torch.float64)[0], inputs(1, 20, torch.float64, seed=2)[0]
    paths = []
    for kind in (dtype, torch.float64):
        weight = nn.Parameter(start.to(kind, copy=True))
        optimizer = NonlocalGradientDescent([weight], lr=0.05, samples=16, gamma=0.3)
        losses = [optimizer.step(lambda: scale * (weight.double() - goal).square().sum()) for _ in range(60)]  # noqa: B023
        paths.append(weight.detach().double())
        state = optimizer.state[weight]
        assert state["exp_avg"].dtype == (torch.float64 if kind == torch.float64 else torch.float32)
        assert weight.dtype == kind and losses[-1] < 0.2 * losses[0]
    assert relative_error(*paths) < {torch.float16: 2e-2, torch.bfloat16: 0.1, torch.float32: 1e-3}.get(dtype, 1e-12)


@pytest.mark.parametrize("dtype", HALF)
def test_updates_below_rounding_add_up(dtype):
    """Steps that are a tenth of the distance of two numbers of float16 or bfloat16 move the parameter together."""
    eps = torch.finfo(dtype).eps
    weight = nn.Parameter(torch.full((1,), 1.25, dtype=dtype))
    optimizer = NonlocalGradientDescent([weight], lr=eps / 10, samples=8)
    for _ in range(100):
        optimizer.step(linear_loss([weight], [torch.ones(1)]))
    assert abs(weight.item() - (1.25 - 10 * eps)) <= eps
    with torch.no_grad():
        weight.fill_(3.0)  # What rounding took from the former value is forgotten.
    optimizer.step(lambda: 1.0)
    assert weight.item() == 3.0


def test_parameters_that_join_late_begin_like_new_ones():
    """After 400 steps, the first step of a parameter that was frozen, and of a group that is added, is the rate."""
    first, frozen, added = (nn.Parameter(torch.zeros(5)) for _ in range(3))
    slopes = [torch.ones(5).double()] * 3
    frozen.requires_grad_(False)
    optimizer = NonlocalGradientDescent([first, frozen], lr=1e-2, samples=1)
    for _ in range(400):
        optimizer.step(linear_loss([first], slopes[:1]))
    assert torch.equal(frozen, torch.zeros(5)) and frozen not in optimizer.state
    frozen.requires_grad_(True)
    optimizer.add_param_group({"params": [added], "lr": 3e-2})
    restored = NonlocalGradientDescent([{"params": [first, frozen]}, {"params": [added]}], samples=1)
    restored.load_state_dict(optimizer.state_dict())
    for one in (optimizer, restored):
        with torch.no_grad():
            frozen.zero_(), added.zero_()
        one.step(linear_loss([first, frozen, added], slopes))
        torch.testing.assert_close(frozen.abs(), torch.full((5,), 1e-2), rtol=1e-5, atol=0)
        torch.testing.assert_close(added.abs(), torch.full((5,), 3e-2), rtol=1e-5, atol=0)
        assert [int(one.state[p]["step"]) for p in (first, frozen, added)] == [401, 1, 1]
    assert optimizer.steps == restored.steps == 401


def test_steps_of_a_constant_loss_do_not_count():
    """The first step after a plateau is the rate, for all dtypes; the displacements are new ones nevertheless."""
    for dtype in (torch.float16, torch.float32):
        weight = nn.Parameter(torch.zeros(5, dtype=dtype))
        optimizer = NonlocalGradientDescent([weight], lr=1e-2, samples=1)
        for _ in range(200):
            optimizer.step(lambda: 1.0)
        assert torch.equal(weight, torch.zeros(5, dtype=dtype)) and not optimizer.state and optimizer.steps == 200
        optimizer.step(linear_loss([weight], [torch.ones(5)]))  # noqa: B023
        torch.testing.assert_close(weight.abs().float(), torch.full((5,), 1e-2), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "settings", [{}, {"weight_decay": 0.3}, {"maximize": True}, {"weight_decay": 0.1, "maximize": True}]
)
@pytest.mark.parametrize("tensor", [False, True])
def test_settings_are_those_of_adamw(settings, tensor):
    """Equal to the last bit, with several learning rates; where these are tensors, AdamW rounds in another order."""
    models = [mlp(3, 4, 1), mlp(3, 4, 1)]
    lr = torch.tensor(0.1) if tensor else 0.1
    groups = [[{"params": m[0].parameters(), "lr": lr}, {"params": m[2].parameters(), **settings}] for m in models]
    optimizer = NonlocalGradientDescent(groups[0], lr=1e-2, samples=4, betas=(0.8, 0.9))
    groups[1][1] |= settings
    adam = torch.optim.AdamW(groups[1], 1e-2, (0.8, 0.9), eps=1e-12, weight_decay=0.0)
    loss = lambda: models[0](inputs(8, 3)).square().mean()  # noqa: E731
    for step in range(3):
        with torch.no_grad():
            gradients, _ = optimizer._nonlocal_gradients(list(models[0].parameters()), loss)
        for parameter, gradient in zip(models[1].parameters(), gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        optimizer.step(loss)
        for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(first, second, rtol=1e-5 if tensor else 0, atol=1e-6 if tensor else 0)
            second.data.copy_(first)
        if tensor and step == 0:
            lr.mul_(0.5)
    assert not torch.equal(models[0][0].weight, mlp(3, 4, 1)[0].weight)


def test_weight_decay_is_decoupled_and_maximize_ascends():
    """A loss without a slope leaves only the decay, not of frozen parameters; ascent is descent of the negative."""
    weight, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = NonlocalGradientDescent([weight, frozen], lr=0.1, samples=2, weight_decay=0.5)
    for _ in range(3):
        assert optimizer.step(lambda: 7.0) == 7.0
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.95**3))
    assert torch.equal(frozen, torch.ones(3))
    up, down = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    ascent = NonlocalGradientDescent([up], samples=4, maximize=True)
    descent = NonlocalGradientDescent([down], samples=4)
    for _ in range(4):
        assert ascent.step(lambda: up.sin().sum()) == -descent.step(lambda: -down.sin().sum())
    assert torch.equal(up, down) and (up > 0).any()


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize("way", ["state", "file", "copy"])
def test_a_state_keeps_every_bit(dtype, way):
    """An optimiser that is saved, loaded or copied goes on as if nothing had happened, in the dtype of its state."""
    goal, runs = inputs(1, 12)[0], []
    for restart in (False, True):
        weight, bias = (nn.Parameter(torch.ones(12, dtype=dtype) * scale) for scale in (1, 1e-3))
        groups = [{"params": [weight]}, {"params": [bias], "lr": 1e-3, "weight_decay": 0.1}]
        optimizer = NonlocalGradientDescent(groups, samples=4, lr=1e-2, seed=5, maximize=True)
        losses = []
        for step in range(8):
            if restart and step == 4:
                if way == "copy":
                    optimizer, weight, bias = copy.deepcopy((optimizer, weight, bias))
                else:
                    file = io.BytesIO()
                    torch.save(optimizer.state_dict(), file)
                    state = optimizer.state_dict() if way == "state" else torch.load(io.BytesIO(file.getvalue()))
                    optimizer = NonlocalGradientDescent([{"params": [weight]}, {"params": [bias]}], samples=4, seed=5)
                    optimizer.load_state_dict(state)
            losses.append(optimizer.step(lambda: -1e-6 * (weight.float() + bias.float() - goal).square().sum()))  # noqa: B023
        runs.append((losses, weight, bias, optimizer.state[weight]["exp_avg_sq"]))
    assert runs[0][0] == runs[1][0] and all(map(torch.equal, runs[0][1:], runs[1][1:]))
    assert runs[1][3].dtype == torch.float32 and (runs[1][3] > 0).all()


def test_a_state_of_an_earlier_version_can_be_loaded():
    """It has other settings of Adam, and none of the new ones."""
    weight = nn.Parameter(torch.ones(3))
    optimizer, adam = NonlocalGradientDescent([weight], samples=2), torch.optim.Adam([weight])
    optimizer.step(lambda: weight.sum())
    state = optimizer.state_dict()
    earlier = {key: value for key, value in adam.defaults.items() if key not in ("weight_decay", "maximize")}
    state["param_groups"] = [{**earlier, "steps": 1, "params": [0]}]
    restored = NonlocalGradientDescent([weight], samples=2)
    restored.load_state_dict(state)
    assert restored.step(lambda: weight.sum()) and restored.steps == 2 and (weight < 1).any()


@pytest.mark.parametrize(
    "number", [lambda v: float(v), lambda v: int(100 * v), lambda v: v, lambda v: v[None, None], lambda v: v.numpy(),
               lambda v: v.bfloat16(), lambda v: bool(v > 0)],
)  # fmt: skip
def test_losses_are_numbers_of_any_kind(number):
    """Python numbers, arrays, and tensors with one entry of any dtype."""
    weight = nn.Parameter(torch.ones(4))
    loss = NonlocalGradientDescent([weight], samples=64, lr=0.1).step(lambda: number(weight.sum()))
    assert type(loss) is float and torch.isfinite(weight).all()


BAD = {
    "nan": (math.nan, ValueError, "a finite loss, got nan"),
    "infinite": (torch.tensor(-math.inf), ValueError, "a finite loss, got -inf"),
    "overflow": (torch.tensor([70000.0]).half(), ValueError, "a finite loss, got inf at step 1; where it overflows"),
    "none": (None, TypeError, "a number, the loss; got None"),
    "text": ("1.0", TypeError, "a number, the loss; got '1.0'"),
    "vector": (torch.ones(3), TypeError, r"a number, the loss; got a tensor of shape \(3,\), torch.float32"),
    "complex": (torch.tensor(1 + 1j), TypeError, r"a number, the loss; got a tensor of shape \(\), torch.complex64"),
    "list": ([1.0], TypeError, r"a number, the loss; got \[1.0\]"),
}


@pytest.mark.parametrize(("value", "error", "message"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_bad_loss_changes_nothing(value, error, message, dtype):
    """Parameters, state and the number of steps are as before, and the next step is that of another optimiser."""
    weight, other = (nn.Parameter(torch.ones(5, dtype=dtype)) for _ in range(2))
    optimizers = [NonlocalGradientDescent([w], samples=3) for w in (weight, other)]
    for optimizer, w in zip(optimizers, (weight, other), strict=True):
        optimizer.step(lambda w=w: w.float().sum())
    calls = itertools.count()
    with pytest.raises(error, match=f"closure must return {message}"):
        optimizers[0].step(lambda: value if next(calls) == 3 else 1.0)
    assert torch.equal(weight, other) and optimizers[0].steps == 1
    for optimizer, w in zip(optimizers, (weight, other), strict=True):
        optimizer.step(lambda w=w: w.float().sum())
    assert torch.equal(weight, other)


def test_a_gradient_that_overflows_changes_nothing():
    """The losses are finite, and their slope is not."""
    weight = nn.Parameter(torch.ones(5))
    optimizer, calls = NonlocalGradientDescent([weight], samples=3, gamma=1e-10), itertools.count()
    with pytest.raises(ValueError, match="the nonlocal gradient of the loss must be finite, got"):
        optimizer.step(lambda: 1e38 * (-1) ** next(calls))
    assert torch.equal(weight, torch.ones(5)) and optimizer.steps == 0 and not optimizer.state


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr must be between"),
        ({"lr": torch.ones(2)}, TypeError, "lr must be a number"),
        ({"betas": (0.9, 1.0)}, ValueError, "the second of betas must be below 1"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be between 0 and 1e\\+30, got -0.1"),
        ({"maximize": 1}, TypeError, "maximize must be True or False, got 1"),
        (
            {"params": [torch.ones(2, dtype=torch.int64)]},
            TypeError,
            "params must be floating tensors, got .* torch.int64",
        ),
        ({"params": [torch.ones(2, device="meta")]}, ValueError, "params must be on one device, got cpu and meta"),
    ],
)
def test_groups_that_do_not_fit_are_errors(group, error, message):
    """At construction, or added later, which then adds nothing."""
    optimizer = NonlocalGradientDescent([torch.ones(2)])
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [torch.ones(3)], **group})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(error, match=message):
        NonlocalGradientDescent([{"params": [torch.ones(2)]}, {"params": [torch.ones(3)], **group}])


def test_a_schedule_may_end_at_zero():
    """A learning rate of zero moves nothing, and one that is not a number is an error."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = NonlocalGradientDescent([weight], samples=2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    optimizer.step(lambda: weight.sum())
    schedule.step()
    assert torch.equal(weight, torch.ones(3))
    optimizer.param_groups[0]["lr"] = math.nan
    with pytest.raises(ValueError, match="lr must be between 0 and 1e\\+30, got nan"):
        optimizer.step(lambda: weight.sum())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NonlocalGradientDescent([torch.ones(2)], lr=0.0), ValueError, "lr must be between"),
        (lambda: NonlocalGradientDescent([torch.ones(2)], betas=(1.0, 0.9)), ValueError, "the first of betas must be"),
        (lambda: NonlocalGradientDescent([torch.ones(2)]).step(), ValueError, "closure must be given, got None"),
        (lambda: NonlocalGradientDescent([torch.ones(2)]).step(lambda: 1.0), ValueError, "params must .* got none"),
        (lambda: NonlocalGradientDescent([]), ValueError, "empty parameter list"),
    ],
)
def test_steps_that_cannot_be_made_are_errors(call, error, message):
    """The message names the argument."""
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
        ({"gamma": 0.0}, ValueError, "gamma must be between 1e-30 and 1e\\+30, got 0"),
        ({"gamma": "wide"}, TypeError, "gamma must be a number, got 'wide'"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"samples": 2.5}, TypeError, "samples must be an integer, got 2.5"),
        ({"directions": "cubic"}, ValueError, "directions must be one of .* got 'cubic'"),
        ({"betas": 0.9}, TypeError, "betas must be a pair of numbers, got 0.9"),
        ({"betas": (0.9,)}, TypeError, r"betas must be a pair of numbers, got \(0.9,\)"),
        ({"betas": (0.9, -0.1)}, ValueError, "the second of betas must be between 0 and 1, got -0.1"),
        ({"betas": (0.9, "x")}, TypeError, "the second of betas must be a number, got 'x'"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be between 0 and 1e\\+30, got -1"),
        ({"weight_decay": "some"}, TypeError, "weight_decay must be a number, got 'some'"),
        ({"maximize": "yes"}, TypeError, "maximize must be True or False, got 'yes'"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
    ],
)
def test_settings_out_of_range_are_errors(settings, error, message):
    """The message names the argument, at construction."""
    with pytest.raises(error, match=message):
        NonlocalGradientDescent([torch.ones(2)], **settings)


def test_a_loss_that_is_not_finite_leaves_the_parameters():
    """The step fails, and the parameters are unperturbed."""
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="closure must return a finite loss, got nan at step 0"):
        NonlocalGradientDescent([weight]).step(lambda: math.nan)
    with pytest.raises(TypeError, match="closure must return a number, the loss; got None"):
        NonlocalGradientDescent([weight]).step(lambda: None)
    assert torch.equal(weight.detach(), torch.ones(2))


SCHEDULES = {
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=6),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6),
    "plateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
    "warm-up": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)],
        [3],
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_are_followed_as_by_adamw(schedule):
    """Learning rates and betas of PyTorch's schedules, for two groups, with decay; hooks of steps are called."""
    x, model, copy = inputs(8, 3), mlp(3, 4, 1), mlp(3, 4, 1)
    groups = [[{"params": m[0].parameters(), "lr": 0.1}, {"params": m[2].parameters()}] for m in (model, copy)]
    optimizer = NonlocalGradientDescent(groups[0], samples=4, weight_decay=0.1)
    adam = torch.optim.AdamW(groups[1], 1e-2, weight_decay=0.1, eps=1e-12)
    schedules, calls = [schedule(optimizer), schedule(adam)], []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    for step in range(5):
        with torch.no_grad():
            gradients, _ = optimizer._nonlocal_gradients(list(model.parameters()), lambda: model(x).square().mean())
        for parameter, gradient in zip(copy.parameters(), gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        optimizer.step(lambda: model(x).square().mean())
        for one in schedules:
            one.step(*([float(step)] if isinstance(one, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
        assert all(map(torch.equal, model.parameters(), copy.parameters()))
        assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in adam.param_groups]
    assert len(calls) == 5 and optimizer.param_groups[0]["lr"] != 0.1
