"""Laws that hold on every rank of a group: what ranks compute together is what one process computes."""

import torch
from conftest import inputs, mlp, relative_error

import nntk
from nntk.distributed import KernelRidge, Sharded, write_kernel

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
WEIGHTS = {
    "drawn": {},
    "on outputs": {"weights": nntk.Attention(temperature=3.0)},
    "custom": {"weights": nntk.Attention(score=lambda x, m: x[:, 0] * torch.arange(m.start, m.stop)[:, None] / 40)},
    "on parameters": {"weights": nntk.Attention(on="parameters", temperature=2.0)},
    "reweighted": {
        "gamma": 1.0, "weights": nntk.FixedKernel("exponential", proposal=nntk.FixedKernel("gaussian"))
    },
}  # fmt: skip


def meshes(size):
    """Return the meshes of a number of ranks."""
    return ["displacements", "inputs", *([(2, 2)] if size == 4 else [])]


def part_of(sharded, x):
    """Return this rank's part of inputs or results: uneven, and empty on the last of three ranks or more."""
    columns, column = sharded.mesh.shape[1], sharded.mesh.inputs.index
    if columns == 1:
        return x
    cuts = {2: [0, 4, len(x)], 3: [0, 2, len(x), len(x)], 4: [0, 1, 2, len(x), len(x)]}[columns]
    return x[cuts[column] : cuts[column + 1]]


def assert_same(sharded, actual, whole, name):
    """Compare this rank's part of a result with that of one process."""
    expected = part_of(sharded, whole)
    assert actual.shape == expected.shape, f"{name}: {actual.shape} in place of {expected.shape}"
    error = relative_error(actual, expected) if float(expected.double().norm()) else float(actual.double().norm())
    assert error < TOLERANCE[whole.dtype], f"{name}: {error}"


def model_of(dtype, outputs=2):
    """Return a small model."""
    return mlp(3, 6, outputs, dtype=dtype)


def kernels_are_those_of_one_process(rank, size):
    """Calls, rectangles and diagonals, for every mesh, weight, estimator and treatment of outputs."""
    cases = [
        (torch.float64, weights, estimator, outputs)
        for weights in WEIGHTS
        for estimator, outputs in (
            ("energy", "trace"),
            ("energy", "full"),
            ("plugin", "mean"),
            ("unbiased", "diagonal"),
        )
    ]
    # Where one displacement has most of the weight, the unbiased form is refused on several ranks.
    cases = [case for case in cases if case[2] != "unbiased" or case[1] in ("drawn", "on outputs")]
    cases += [(torch.float32, "drawn", estimator, "trace") for estimator in ("energy", "plugin", "unbiased")]
    cases += [(torch.float32, "on outputs", "energy", "trace"), (torch.float64, "drawn", "unbiased", "full")]
    for over in meshes(size):
        for dtype, weights, estimator, outputs in cases:
            name = f"{over}, {dtype}, {weights}, {estimator}, {outputs}"
            settings = {"samples": 150, "estimator": estimator, "outputs": outputs, **WEIGHTS[weights]}
            kernel = nntk.NonlocalNTK(model_of(dtype), **settings)
            x, other = inputs(7, 3, dtype), inputs(5, 3, dtype, seed=5)
            sharded = Sharded(kernel, over)
            own = part_of(sharded, x)
            assert_same(sharded, sharded(own), kernel(x), name)
            if weights in ("drawn", "on outputs"):
                assert_same(sharded, sharded(own, part_of(sharded, other)), kernel(x, other), f"{name}, rectangle")
                assert_same(sharded, sharded.diagonal(own), kernel.diagonal(x), f"{name}, diagonal")


def whole_kernels_are_exactly_symmetric(rank, size):
    """The rows of all ranks make a symmetric matrix, though they were added in different orders."""
    for over in meshes(size):
        for outputs in ("trace", "full"):
            kernel = nntk.NonlocalNTK(model_of(torch.float32), samples=40, outputs=outputs)
            sharded = Sharded(kernel, over)
            whole = sharded.gather(sharded(part_of(sharded, inputs(7, 3))))
            swapped = whole.transpose(0, 1) if outputs == "trace" else whole.permute(1, 0, 3, 2)
            assert torch.equal(whole, swapped), f"{over}, {outputs}"


def ranks_may_have_nothing_to_do(rank, size):
    """More ranks than displacements; inputs on one rank alone."""
    x = inputs(4, 3, torch.float64)
    for weights in WEIGHTS.values():
        kernel = nntk.NonlocalNTK(model_of(torch.float64), samples=size - 1, **weights)
        sharded = Sharded(kernel)
        assert_same(sharded, sharded(x), kernel(x), "few displacements")
    for over in meshes(size)[1:]:
        kernel = nntk.NonlocalNTK(model_of(torch.float64), samples=20)
        sharded = Sharded(kernel, over)
        own = x if sharded.mesh.inputs.index == sharded.mesh.shape[1] - 1 else x[:0]
        rows = sharded(own)
        assert rows.shape == (len(own), 4) and torch.allclose(sharded.gather(rows), kernel(x), rtol=1e-12)


def chunks_and_general_models_change_nothing(rank, size):
    """A small budget cuts many chunks; modules that are no MLP, functions and stochastic models are shared too."""
    x = inputs(7, 3, torch.float64)
    general = torch.nn.Sequential(model_of(torch.float64), torch.nn.Softmax(-1))
    dropout = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)).double()
    torch.manual_seed(0)
    for parameter in dropout.parameters():
        torch.nn.init.normal_(parameter)
    for over in meshes(size):
        for model, settings in ((general, {}), (model_of(torch.float64), {"max_memory": 2**20, "samples": 600})):
            kernel = nntk.NonlocalNTK(model, **{"samples": 40, **settings})
            sharded = Sharded(kernel, over)
            assert_same(sharded, sharded(part_of(sharded, x)), kernel(x), f"{over}, {settings}")
            assert not sharded.operator(part_of(sharded, x)).diagonal().requires_grad
    kernel = nntk.NonlocalNTK(dropout, samples=40, draws=2)
    assert_same(Sharded(kernel), Sharded(kernel)(x), kernel(x), "draws")


def features_and_operators_are_those_of_one_process(rank, size):
    """Columns of features, products, solutions, spectra and traces, for more features than inputs and for fewer."""
    for over in meshes(size):
        for dtype, estimator, samples, weights in (
            (torch.float64, "energy", 2, "drawn"),
            (torch.float64, "energy", 40, "on outputs"),
            (torch.float64, "plugin", 40, "drawn"),
            (torch.float32, "energy", 40, "drawn"),
        ):
            outputs = "mean" if estimator == "plugin" else "trace"
            settings = {"samples": samples, "estimator": estimator, "outputs": outputs, **WEIGHTS[weights]}
            kernel = nntk.NonlocalNTK(model_of(dtype), **settings)
            sharded, x = Sharded(kernel, over), inputs(7, 3, dtype)
            name, own = f"{over}, {dtype}, {estimator}, {samples}", part_of(sharded, x)
            columns = sharded.mesh.displacements.gather(sharded.features(own).T.contiguous())
            assert_same(sharded, torch.cat(columns).T, kernel.features(x), f"{name}, features")
            shared, single = sharded.operator(own), kernel.operator(x)
            y = inputs(7, 2, torch.float64, seed=3)
            mine = part_of(sharded, y)
            assert shared.shape == single.shape and shared.num_features == single.num_features
            assert_same(sharded, (shared @ mine).to(dtype), (single @ y).to(dtype), f"{name}, product")
            ridge = single.trace() / 7
            assert_same(
                sharded, shared.solve(mine, ridge).to(dtype), single.solve(y, ridge).to(dtype), f"{name}, solution"
            )
            k = min(2, single.num_features)
            values, vectors = shared.eigsh(k)
            expected, _ = single.eigsh(k)
            assert relative_error(values, expected) < TOLERANCE[dtype] and vectors.shape == (len(own), k)
            residual = (shared @ vectors) - vectors * values
            assert float(residual.norm()) < 1e3 * TOLERANCE[dtype] * float(values[0]), f"{name}, vectors"
            assert relative_error(shared.eigvalsh(k), expected) < TOLERANCE[dtype]
            assert abs(shared.trace() / single.trace() - 1) < TOLERANCE[dtype]
            assert_same(sharded, shared.diagonal().to(dtype), single.diagonal().to(dtype), f"{name}, diagonal")
            weights_of_features = shared.project(mine)
            assert relative_error(weights_of_features, single.project(y)) < TOLERANCE[dtype]
            other = inputs(5, 3, dtype, seed=5)
            assert_same(
                sharded,
                shared.expand(weights_of_features, part_of(sharded, other)).to(dtype),
                single.expand(weights_of_features, other).to(dtype),
                f"{name}, prediction",
            )


def groups_of_some_ranks_come_before_those_of_all(rank, size):
    """A kernel shared by the first ranks, by the last ones, and then by all."""
    kernel, x = nntk.NonlocalNTK(model_of(torch.float64), samples=20), inputs(7, 3, torch.float64)
    for members in (range(2), range(size - 2, size), range(size)):
        group = torch.distributed.new_group(list(members))
        if rank in members:
            for _ in range(2):
                sharded = Sharded(kernel, group=group)
                assert_same(sharded, sharded(x), kernel(x), f"ranks {members}")


def kernels_share_their_process_groups(rank, size):
    """One kernel after another makes no more groups, threads and connections than one of them."""
    kernel, x = nntk.NonlocalNTK(model_of(torch.float64), samples=20), inputs(7, 3, torch.float64)
    numbers = []
    for _ in range(3):
        for over in meshes(size):
            sharded = Sharded(kernel, over)
            assert_same(sharded, sharded(part_of(sharded, x)), kernel(x), f"{over}")
        numbers.append(len(torch.distributed.distributed_c10d._world.pg_names))
    assert numbers == numbers[:1] * 3, numbers


def estimates_are_those_of_one_process(rank, size):
    """The same groups, errors and number of samples, to the last bit, for every estimator."""
    x = inputs(5, 3, torch.float64)
    for estimator, weights in (("energy", "drawn"), ("energy", "on outputs"), ("unbiased", "drawn")):
        kernel = nntk.NonlocalNTK(model_of(torch.float64, 1), samples=64, estimator=estimator, **WEIGHTS[weights])
        for over in meshes(size):
            sharded = Sharded(kernel, over)
            mine = sharded.estimate(part_of(sharded, x), rtol=0.08, max_samples=512)
            expected = kernel.estimate(x, rtol=0.08, max_samples=512)
            assert (mine.samples, mine.groups, mine.converged) == (
                expected.samples,
                expected.groups,
                expected.converged,
            )
            assert torch.equal(mine.kernel, expected.kernel) and torch.equal(
                mine.standard_error, expected.standard_error
            )


def ridge_regression_is_that_of_one_process(rank, size):
    """For fewer features than inputs and for more, with a given ridge and with leave-one-out."""
    x, other = inputs(11, 3, torch.float64), inputs(5, 3, torch.float64, seed=5)
    y = torch.stack((x.sum(1).sign(), x[:, 0]), 1)
    for over in meshes(size):
        for samples in (3, 40):
            for alpha in (0.5, "loo"):
                kernel = nntk.NonlocalNTK(model_of(torch.float64), samples=samples)
                sharded = Sharded(kernel, over)
                fit = KernelRidge(sharded, alpha).fit(part_of(sharded, x), part_of(sharded, y))
                single = nntk.KernelRidge(samples=samples, alpha=alpha, model=model_of(torch.float64))
                single.fit(x.numpy(), y.numpy())
                assert abs(fit.alpha_ / single.alpha_ - 1) < 1e-9
                expected = torch.from_numpy(single.predict(other.numpy()))
                error = relative_error(sharded.gather(fit.predict(part_of(sharded, other))), expected)
                assert error < 1e-9, f"{over}, {samples}, {alpha}: {error}"


def files_are_those_of_one_process(rank, size, folder):
    """To the last bit; ranks may have more tiles than others, or none."""
    x, other = inputs(11, 3), inputs(4, 3, seed=5)
    kernel = nntk.NonlocalNTK(model_of(torch.float32), samples=16)
    for over in meshes(size):
        sharded = Sharded(kernel, over)
        for number, columns in enumerate((None, other)):
            for tile in (2, 6, 20):
                path, seen = folder / f"{size}-{over}-{number}-{tile}.npy", []
                own = None if columns is None else part_of(sharded, columns)
                note = lambda *pair, seen=seen: seen.append(pair)  # noqa: E731
                matrix = write_kernel(path, sharded, part_of(sharded, x), own, tile=tile, progress=note)
                assert seen[-1][0] == seen[-1][1] and len(seen) == -(-seen[-1][1] // size)
                single = nntk.write_kernel(folder / f"{rank}.npy", kernel, x, columns, tile=tile)
                assert (matrix == single).all()
                (folder / f"{rank}.npy").unlink()
                (folder / f"{rank}.npy.progress").unlink()


def deterministic_results(rank, size):
    """Return what must have the same bits for any number of ranks."""
    x, other, results = inputs(7, 3), inputs(5, 3, seed=5), []
    for estimator, weights in (
        ("energy", "drawn"), ("energy", "on outputs"), ("energy", "reweighted"), ("plugin", "drawn"),
        ("unbiased", "drawn"),
    ):  # fmt: skip
        kernel = nntk.NonlocalNTK(model_of(torch.float32), samples=100, estimator=estimator, **WEIGHTS[weights])
        sharded = Sharded(kernel, deterministic=True)
        results += [sharded(x), sharded(x, other), sharded.diagonal(x)]
        assert_same(sharded, results[-3], kernel(x), f"{estimator}, {weights}")
        assert_same(sharded, results[-1], kernel.diagonal(x), f"{estimator}, {weights}")
        assert torch.equal(results[-3], results[-3].T)
        if estimator != "unbiased":
            operator = sharded.operator(x)
            y = inputs(7, 2, seed=3)
            results += [operator @ y, operator.solve(y, 0.1), operator.gram, operator.project(y)]
            assert_same(sharded, results[-4], kernel.operator(x) @ y, f"{estimator}, {weights}, product")
    return [result.double().numpy().tobytes() for result in results]
