"""What holds for models on several ranks; tests/test_distributed.py calls these functions on each rank."""

import copy
import inspect
import os
from pathlib import Path

import every_readout
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from op_checks import assert_same
from torch import nn
from torch.distributed import fsdp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import v1fast
from v1fast import functional, ops, readouts
from v1fast.distributed import (
    dissimilarities,
    placement_for_fsdp,
    rdm,
    rdm_correlation,
    rdm_to_file,
    shard_neurons,
    split_images,
)
from v1fast.losses import PoissonLoss
from v1fast.models import FiringRateEncoder
from v1fast.rsa import rdm_correlation as of_one_process

MAP, IMAGES = every_readout.MAP, 5
POINT_READOUTS = [
    name
    for name in every_readout.MAKERS
    if name.split(",")[0]
    in {
        "ClonedReadout",
        "FullGaussian2d",
        "Gaussian2d",
        "GeneralizedFullGaussianReadout2d",
        "GeneralizedPointPooled2d",
        "MultiReadoutBase",
        "MultiReadoutSharedParametersBase",
        "PointGaussianReadout",
        "PointPooled2d",
        "PointPyramid2d",
        "RemappedGaussian2d",
        "SpatialTransformerPooled3d",
    }
    and not name.endswith(("isotropic", "uncorrelated", "1 output"))  # the same code
]


def mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("neurons",))


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def made(name, dtype=torch.float32):
    torch.manual_seed(1)
    return every_readout.MAKERS[name]().to(dtype)


def named(*names):
    """A message of assert_close that says of what."""
    return lambda text: f"{' '.join(names)}: {text}"


def parts_joined(local, axis=-1):
    """The outputs of all ranks, in the order of the neurons."""
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, local.detach())
    return torch.cat(parts, axis)


def own(layer, whole_tensor):
    """The columns of this rank's neurons."""
    while not hasattr(layer, "outdims"):
        layer = list(layer.children())[-1]
        layer = list(layer.values())[-1] if isinstance(layer, nn.ModuleDict) else layer
    first = getattr(layer, "first_neuron", None)
    first = layer._source.first_neuron if first is None else first
    return whole_tensor[..., first : first + layer.outdims]


def a_step(layer, x, shift, upstream, reduction="sum"):
    """Outputs, and the gradients of one step, by name."""
    torch.manual_seed(7)  # of the samples
    out = layer(x, shift=shift)
    penalties = [
        part.regularizer(reduction=reduction) for part in layer.modules() if isinstance(part, readouts.Readout)
    ]
    ((out * upstream).sum() + sum(penalties)).backward()
    found = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return out, found | {"features": x.grad, "shift": shift.grad}


def ranks_have_the_v1fast_of_the_tests():
    """With its kernels: no other one, as that of the folder at hand."""
    assert v1fast.__file__ == os.environ["V1FAST_OF_THE_TESTS"]


def every_point_readout_has_the_gradients_of_one_process():
    for name in POINT_READOUTS:
        for reduction in ("mean", "sum") if name in {"ClonedReadout", "PointPooled2d"} else ("sum",):
            layer = made(name)
            torch.manual_seed(3)
            x = every_readout.features(layer)
            if "3D" not in name and x.dim() == 4:
                x = x.to(memory_format=torch.channels_last)
            shift = 0.1 * torch.randn(2, 2)
            one, several = ((x.clone().requires_grad_(), shift.clone().requires_grad_()) for _ in range(2))
            target = torch.randn_like(layer(x))
            want_out, want = a_step(copy.deepcopy(layer), *one, target, reduction)
            sharded = shard_neurons(layer, mesh())
            out, found = a_step(sharded, *several, own(sharded, target), reduction)
            # A network's products of fewer rows may be rounded otherwise.
            alike = torch.testing.assert_close if "predicted" in name else assert_same
            alike(parts_joined(out), want_out.detach())
            assert found.keys() == want.keys()
            for key, gradient in want.items():
                if gradient is None:
                    assert found[key] is None, (name, key)
                else:
                    torch.testing.assert_close(whole(found[key]), gradient, msg=named(name, key))


class Conv(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 5, 3, padding=1), nn.ELU())


class Shifter(nn.Linear):
    def forward(self, pupil_center, trial_idx=None):
        return 0.1 * super().forward(pupil_center)


NEURONS = 11
CORTEX = torch.randn(NEURONS, 2, generator=torch.Generator().manual_seed(0)).numpy()


def encoder(dtype=torch.float64, seed=4):
    torch.manual_seed(seed)
    readout = readouts.MultiReadoutSharedParametersBase(
        {"a": MAP, "b": MAP},
        {"a": NEURONS, "b": NEURONS},
        readouts.FullGaussian2d,
        bias=True,
        init_mu_range=0.9,
        init_sigma=0.4,
        feature_reg_weight=0.01,
        grid_mean_predictor={"hidden_layers": 1},
        grid_mean_predictor_type="cortex",
        share_transform=True,
        share_features=True,
        source_grids={"a": CORTEX, "b": CORTEX + 1},
        shared_match_ids={"a": list(range(NEURONS)), "b": list(range(NEURONS))[::-1]},
    )
    readout.add_session("c", 7, grid_mean_predictor=None, share_features=False)
    return FiringRateEncoder(Conv(), readout, shifter=Shifter(2, 2)).to(dtype)


def batch(session, step, dtype=torch.float64):
    draw = torch.Generator().manual_seed(step)
    neurons = {"c": 7}.get(session, NEURONS)
    images = torch.randn(IMAGES, 1, *MAP[1:], generator=draw, dtype=dtype)
    return (
        images,
        torch.rand(IMAGES, neurons, generator=draw, dtype=dtype),
        torch.randn(IMAGES, 2, generator=draw, dtype=dtype),
    )


def optimizer_of(model):
    """The readouts' parameters, which may be DTensors, in a group of their own."""
    parts = (model.core, model.shifter), (model.readout,)
    groups = [{"params": [one for part in group for one in part.parameters()]} for group in parts]
    return torch.optim.Adam(groups, lr=0.05)


def train(model, steps, first=0, optimizer=None):
    """Losses of all neurons."""
    optimizer, losses = optimizer or optimizer_of(model), []
    torch.manual_seed(first)
    for step in range(first, first + steps):
        optimizer.zero_grad()
        for session, readout in model.readout.items():
            images, responses, pupil = batch(session, step)
            rates = model(images, data_key=session, pupil_center=pupil)
            part = responses[:, readout.first_neuron : readout.first_neuron + readout.outdims]
            loss = PoissonLoss(avg=False)(rates, part) + readout.regularizer()
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
    losses = torch.stack(losses)
    return losses, optimizer


def summed(losses):
    dist.all_reduce(losses)
    return losses


def sharded_encoder():
    model = encoder()
    shard_neurons(model.readout, mesh())
    return model


def twenty_steps_have_the_losses_of_one_process():
    want, _ = train(one := encoder(), 20)
    model = sharded_encoder()
    found = summed(train(model, 20)[0])
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)
    for (name, parameter), expected in zip(model.named_parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(whole(parameter), expected, rtol=1e-8, atol=1e-8, msg=named(name))


def no_rank_has_all_neurons():
    model = sharded_encoder()
    most = -(-NEURONS // dist.get_world_size())
    readout = model.readout["a"]
    assert readout.outdims <= most
    images, _, pupil = batch("a", 0)
    assert model(images, data_key="a", pupil_center=pupil).shape == (IMAGES, readout.outdims)
    for session in model.readout.values():
        for name, parameter in session.named_parameters():
            if "mu_transform" not in name and "_features" not in name:
                assert session.outdims in parameter.to_local().shape, name
    assert model.readout["a"].mu_transform[0].weight is model.readout["b"].mu_transform[0].weight
    assert model.readout["a"]._features is model.readout["b"]._features
    total = torch.tensor(readout.outdims)
    dist.all_reduce(total)
    assert total == NEURONS


def ranks_without_neurons():
    """Ranks that have no neurons take part."""
    layer = readouts.FullGaussian2d(MAP, 1, bias=True, grid_mean_predictor={}, source_grid=[[0.0, 0.0]])
    x = torch.randn(2, *MAP, requires_grad=True)
    expected = copy.deepcopy(layer)
    torch.manual_seed(0)
    expected(x).sum().backward()
    want, x.grad = x.grad, None
    shard_neurons(layer, mesh())
    torch.manual_seed(0)
    (layer(x).sum() + layer.regularizer(reduction="mean")).backward()
    torch.testing.assert_close(x.grad, want)
    for found, one in zip(layer.mu_transform.parameters(), expected.mu_transform.parameters(), strict=True):
        torch.testing.assert_close(whole(found.grad), one.grad)


def samples_are_those_of_one_process():
    for options in ({}, {"batch_sample": False}, {"gauss_type": "isotropic"}):
        torch.manual_seed(0)
        layer = readouts.FullGaussian2d(MAP, NEURONS, bias=True, **options)
        expected = copy.deepcopy(layer)
        shard_neurons(layer, mesh())
        torch.manual_seed(5)
        want = expected.sample_grid(3, True)
        torch.manual_seed(5)
        assert torch.equal(parts_joined(layer.sample_grid(3, True), 1), want)
        for x in (torch.randn(3, *MAP), torch.randn(3, MAP[0], 2, *MAP[1:])):
            dist.broadcast(x, 0)
            found = parts_joined(layer(x, sample=True, seed=9, image_offset=2))
            assert_same(found, expected(x, sample=True, seed=9, image_offset=2).detach())
            index = [0, -1] if layer.outdims else []
            assert_same(layer(x, seed=9, out_idx=index), layer(x, seed=9)[..., index])


def a_readout_on_the_meta_device_gets_the_values_it_would_have():
    for name in ("FullGaussian2d", "FullGaussian2d, predicted grid", "PointPooled2d", "MultiReadoutBase"):
        want = made(name).state_dict()
        torch.manual_seed(1)
        with torch.device("meta"):
            layer = every_readout.MAKERS[name]()
        shard_neurons(layer, mesh())
        assert layer.state_dict().keys() == want.keys()
        for key, value in layer.state_dict().items():
            assert torch.equal(whole(value), want[key]), (name, key)
    mean_activity = torch.rand(NEURONS)
    dist.broadcast(mean_activity, 0)
    with torch.device("meta"):
        layer = readouts.FullGaussian2d(MAP, NEURONS, bias=True, mean_activity=mean_activity)
    assert torch.equal(whole(shard_neurons(layer, mesh()).bias), mean_activity)


def whole_state_dicts_load():
    want = encoder(seed=8).state_dict()
    model = sharded_encoder()
    model.load_state_dict(want)
    for name, value in model.state_dict().items():
        assert torch.equal(whole(value), want[name]), name


def refuses_what_it_cannot_shard():
    def layer(**options):
        return readouts.FullGaussian2d(MAP, NEURONS, bias=True, **options)

    sharded = shard_neurons(layer(), mesh())
    with torch.device("meta"):
        without_values = every_readout.MAKERS["PointPyramid2d"]()
    for wrong, message in (
        (readouts.FullFactorized2d(MAP, NEURONS, bias=True), r"^readout: .* got FullFactorized2d"),
        (layer(sampler="torch"), r"^sampler: "),
        (sharded, r"^readout: .* got ShardedFullGaussian2d"),
        (without_values, r"^gauss_pyramid\.filter: "),
    ):
        with pytest.raises(ValueError, match=message):
            shard_neurons(wrong, mesh())
    both = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("images", "neurons"))
    for function in (shard_neurons, split_images):
        with pytest.raises(ValueError, match=r"^mesh: want one dimension, got 2"):
            function(layer(), both)
    with pytest.raises(ValueError, match=r"^mu_dispersion: "):
        _ = sharded.mu_dispersion
    assert f"of {NEURONS}" in repr(shard_neurons(layer(), both["neurons"]))


def checkpoint():
    return os.path.join(os.environ["SCRATCH"], os.environ.get("CHECKPOINT", "checkpoint"))


def saves_after_three_steps():
    model = sharded_encoder()
    _, optimizer = train(model, 3)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=checkpoint())


def one_process_reads_the_checkpoint():
    sharded, one = sharded_encoder(), encoder(seed=99)
    train(sharded, 3)
    state = {"model": one.state_dict()}
    alone = dcp.load if "no_dist" in inspect.signature(dcp.load).parameters else dcp.load_state_dict  # as in torch 2.5
    alone(state, storage_reader=dcp.FileSystemReader(checkpoint()), no_dist=True)
    for name, value in sharded.state_dict().items():
        torch.testing.assert_close(state["model"][name], whole(value), rtol=1e-12, atol=1e-12)


def goes_on_from_the_checkpoint():
    """With any number of ranks; one rank has no DTensors."""
    model = encoder(seed=99)
    if dist.get_world_size() > 1:
        shard_neurons(model.readout, mesh())
    optimizer = optimizer_of(model)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=checkpoint())
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    found = summed(train(model, 3, first=3, optimizer=optimizer)[0])
    one = encoder()
    _, optimizer = train(one, 3)
    torch.testing.assert_close(found, train(one, 3, first=3, optimizer=optimizer)[0], rtol=1e-9, atol=1e-9)


# images split over ranks


def image_mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("images",))


class Core(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ELU())


def model_of_sessions(neurons):
    torch.manual_seed(2)
    sizes = {"a": MAP, "b": MAP}
    readout = readouts.MultiReadoutBase(sizes, neurons, readouts.FullGaussian2d, bias=True, init_mu_range=0.9)
    model = FiringRateEncoder(Core(), readout, shifter=Shifter(2, 2)).double()
    model.core[1].running_mean.uniform_(-1, 1)
    model.core[1].eval()
    return model


def part_of(batch, sizes):
    """This rank's images, their offset, and the batch's fields."""
    rank = dist.get_rank()
    first = sum(sizes[:rank])
    return first, [field[first : first + sizes[rank]] for field in batch]


def gradients(model, forward, neurons, sizes, scale):
    """Of one step over both sessions; the last batch is uneven."""
    for seed, session in enumerate(neurons):
        draw = torch.Generator().manual_seed(seed)
        images, pupil = (torch.randn(sum(sizes), *shape, generator=draw).double() for shape in ((1, *MAP[1:]), (2,)))
        responses = torch.rand(sum(sizes), neurons[session], generator=draw).double()
        first, fields = (0, (images, responses, pupil)) if scale == 1 else part_of((images, responses, pupil), sizes)
        rates = forward(fields[0], data_key=session, pupil_center=fields[2], seed=seed, image_offset=first)
        (scale * PoissonLoss(avg=False)(rates, fields[1])).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def ranks_average_to_the_gradients_of_one_process(split):
    neurons, sizes = {"a": 8, "b": 12}, [3, 1, 4, 1][: dist.get_world_size()]
    want = gradients(model := model_of_sessions(neurons), model, neurons, sizes, scale=1)
    several = model_of_sessions(neurons)
    found = gradients(several, split(several), neurons, sizes, scale=dist.get_world_size())
    for name, gradient in want.items():
        torch.testing.assert_close(whole(found[name]), gradient, msg=named(name))


def distributed_data_parallel():
    parallel = nn.parallel.DistributedDataParallel
    ranks_average_to_the_gradients_of_one_process(lambda model: parallel(model, find_unused_parameters=True))


def fully_sharded_data_parallel():
    def split(model):
        options = {"mesh": image_mesh(), "shard_placement_fn": placement_for_fsdp(dist.get_world_size())}
        for part in (*model.readout.values(), model):
            fsdp.fully_shard(part, **options)
        widest = model.readout["a"]._features
        assert widest.to_local().numel() * dist.get_world_size() == widest.numel()
        return model

    ranks_average_to_the_gradients_of_one_process(split)


def ranks_draw_their_own_samples():
    """Although they share torch's seed."""
    for layer, draws_apart in (
        (readouts.FullGaussian2d(MAP, 50, bias=True), True),
        (readouts.FullGaussian2d(MAP, 50, bias=True, batch_sample=False), False),
        (readouts.Gaussian3d(MAP, 50, **every_readout.POINTS_3D), True),
    ):
        x = torch.randn(2, *MAP)
        for tensor in (x, *layer.parameters()):
            dist.broadcast(tensor.detach(), 0)
        given = parts_joined(layer(x, seed=3), 0)
        for split in (False, True):
            layer = split_images(layer, image_mesh()) if split else layer
            torch.manual_seed(0)
            one, *others = parts_joined(layer(x, sample=True), 0).split(len(x))
            assert all(torch.equal(one, other) != (split and draws_apart) for other in others)
        assert torch.equal(parts_joined(layer(x, seed=3), 0), given)
    with pytest.raises(ValueError, match=r"^sampler: "):
        split_images(readouts.FullGaussian2d(MAP, 5, bias=True, sampler="torch"), image_mesh())


def fully_sharded_training_keeps_means_in_the_map():
    """Where passes compute with gathered parameters, the sharded ones are brought into their range by project_.

    In float64: for float32, fully_shard asks gloo for an average, and up to torch 2.8 gets the sum.
    """

    def train(model, forward):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for step in range(4):
            optimizer.zero_grad()
            draw = torch.Generator().manual_seed(step)
            x, upstream = (torch.randn(2, *shape, generator=draw).double() for shape in (MAP, (8,)))
            (forward(x, seed=step) * upstream).sum().backward()
            optimizer.step()
            model.project_()
        return model._mu

    torch.manual_seed(0)
    one = readouts.FullGaussian2d(MAP, 8, bias=True, init_mu_range=1.0).double()
    several = copy.deepcopy(one)
    fsdp.fully_shard(several, mesh=image_mesh(), shard_placement_fn=placement_for_fsdp(dist.get_world_size()))
    found, want = whole(train(several, several)), train(one, one)
    assert (want.abs() == 1).any()
    torch.testing.assert_close(found, want)


def lightning_shards_the_model():
    """By ModelParallelStrategy, which takes CPUs too."""
    import lightning
    from lightning.pytorch.strategies import ModelParallelStrategy

    neurons = {"a": 8}
    draw = torch.Generator().manual_seed(0)
    images, responses = (torch.randn(4, *shape, generator=draw).double() for shape in ((1, *MAP[1:]), (8,)))

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model_of_sessions(neurons)
            self.model.shifter = None

        def configure_model(self):
            ranks = self.device_mesh["data_parallel"]
            if dist.get_world_size() == ranks.size():
                fsdp.fully_shard(self.model, mesh=ranks, shard_placement_fn=placement_for_fsdp(ranks.size()))
                split_images(self.model, ranks)

        def training_step(self, batch, batch_idx):
            return loss_of(self.model)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(range(3))

    def loss_of(model):
        model.eval()
        return (model(images, data_key="a") - responses).square().sum()

    os.environ |= {"RANK": str(dist.get_rank()), "LOCAL_RANK": str(dist.get_rank())}
    ranks = dist.get_world_size()
    os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "TORCHELASTIC_RUN_ID": "here"}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1),
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module := Module())
    one = model_of_sessions(neurons)
    one.shifter = None
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(one).backward()
        optimizer.step()
    for (name, parameter), expected in zip(module.model.named_parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(whole(parameter), expected, msg=named(name))


# dissimilarity matrices


def matrices_are_those_of_one_process():
    exact = ops.loaded["native"] == "loaded"
    for stimuli, neurons in ((11, 7), (40, 5), (1, 3)):
        draw = torch.Generator().manual_seed(stimuli)
        responses = torch.randn(stimuli, neurons, generator=draw)
        responses[0, 0] = torch.nan if stimuli == 40 else 0.0
        for dtype in (torch.float32, torch.float64):
            given = responses.to(dtype)
            for placement in (Shard(0), Replicate()) if dtype == torch.float32 else (Shard(1),):
                spread = distribute_tensor(given, mesh(), [placement])
                for method in ("correlation", "cosine", "euclidean"):
                    found, want = rdm(spread, method=method), functional.rdm(given, method=method)
                    assert found.placements == (Shard(0),)
                    assert found.to_local().shape[0] <= -(-stimuli // dist.get_world_size())
                    close = {"rtol": 0, "atol": 0} if exact and method != "euclidean" else {}
                    torch.testing.assert_close(
                        whole(found), want, **close, equal_nan=True, msg=named(method, str(placement))
                    )
                    assert torch.equal(whole(found).nan_to_num(9), whole(found).T.nan_to_num(9))
    for wrong in (responses, distribute_tensor(responses[0], mesh(), [Replicate()])):
        with pytest.raises(ValueError, match=r"^responses: want a DTensor \[S, N\]"):
            rdm(wrong)


def correlations_are_those_of_one_process():
    draw = torch.Generator().manual_seed(0)
    for stimuli, special in ((23, 1.0), (2, 1.0), (3, 1.0), (9, torch.nan), (12, 1e25), (1, 1.0)):
        x, y = (torch.randn(stimuli, neurons, generator=draw) for neurons in (6, 9))
        x = x * special if special > 1 else x
        y[-1, 0] = special if special != special else y[-1, 0]
        spread = (distribute_tensor(x, mesh(), [Shard(1)]), distribute_tensor(y, mesh(), [Shard(0)]))
        for method in ("pearson", "cosine"):
            for dissimilarity in ("correlation", "cosine", "euclidean"):
                found, want = (
                    torch.tensor(function(*given, method, dissimilarity=dissimilarity))
                    for function, given in ((rdm_correlation, spread), (of_one_process, (x, y)))
                )
                torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6, equal_nan=True)
    with pytest.raises(ValueError, match=r"^y: want \[S, M\] with S = 1"):
        rdm_correlation(spread[0], distribute_tensor(torch.randn(4, 3), mesh(), [Shard(0)]))


def one_file_holds_the_matrix():
    dissimilarities.SIDE = 3  # several tiles on each rank
    path = Path(os.environ["SCRATCH"]) / f"{dist.get_world_size()}.npy"
    for stimuli, dtype in ((23, torch.float32), (7, torch.float64), (2, torch.float32), (1, torch.float32)):
        responses = torch.randn(stimuli, 6, generator=torch.Generator().manual_seed(stimuli)).to(dtype)
        spread = distribute_tensor(responses, mesh(), [Shard(1)])
        found = rdm_to_file(spread, path, overwrite=stimuli != 23)
        assert_same(torch.tensor(np.array(found)), functional.rdm(responses, condensed=True))
        dist.barrier()
    with pytest.raises(FileExistsError, match=r"\.npy: there is such a file"):
        rdm_to_file(spread, path)
    assert not list(path.parent.glob(".*partial"))
    for one in ("pearson", "cosine"):
        x, y = (torch.randn(23, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
        spread = [distribute_tensor(part, mesh(), [Shard(0)]) for part in (x, y)]
        assert abs(rdm_correlation(*spread, one) - of_one_process(x, y, one)) < 1e-6
