"""More than one process: each computes its share of every batch, on its own GPU, and with --shard keeps its share of
the model.

    torchrun --nproc_per_node=4 -- asu.py               whole models, gradients added up
    torchrun --nproc_per_node=4 -- asu.py --shard       weights, gradients and optimizer state divided as well (FSDP2)

The batch of a step stays what it is, so the run is that of one process to within rounding. Every process runs the
same program on the same numbers: fact accuracy, the choice of heads and the cached teacher are computed by all of
them, whole. Only the first one prints and writes. Without torchrun there is one process, and nothing here does
anything.
"""

import copy
import os
import sys

import torch
import torch.distributed as dist

import data
from common import UserError
from common.cli import pick_device, processes

rank, world_size = processes()


def start(args):
    """Join the other processes, if there are any. -> pick_device(args), a GPU to each process"""
    if args.lora and args.shard:
        raise UserError("--lora and --shard do not go together: what LoRA trains is small, leave out --shard")
    if world_size == 1:
        if args.shard:
            raise UserError("--shard divides the model between processes; start several: torchrun --nproc_per_node=N")
        return pick_device(args)
    if args.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device={args.device} is one device for {world_size} processes; with torchrun: auto, cpu or "
                        "cuda")
    cuda = args.device != "cpu" and torch.cuda.is_available()
    if cuda and int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
        raise UserError(f"{os.environ['LOCAL_WORLD_SIZE']} processes are too many for this machine: torchrun "
                        f"--nproc_per_node={torch.cuda.device_count()} gives each a GPU")
    if cuda:
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(args.device)
    elif args.device == "auto":
        args.device = "cpu"
    device, dtype = pick_device(args)
    if args.shard and not cuda and not hasattr(torch.cpu.Stream, "record_event"):
        raise UserError(f"--shard on the CPU is more than torch {torch.__version__} can do; take a newer one, or a GPU "
                        "to each process")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    if rank > 0:
        sys.stdout = open(os.devnull, "w")
    return device, dtype


def stop():
    if world_size > 1:
        dist.destroy_process_group()


# ---------------------------------------------------------------------------------------- batches and gradients
def micro_batches(batch, parts):
    """This process's micro-batches of a step -> (rows, how many of them count), `parts` times or fewer.

    Every process gets the same number of them, because gathering shards takes all. One that would be left without
    rows runs on the batch's first, which does not count: 3 rows, 2 processes, parts=2 -> [(a, 1), (c, 1)] and [(b,
    1), (a, 0)].
    """
    pieces = data.split(batch, parts * world_size)
    for i in range(rank, -(-len(pieces) // world_size) * world_size, world_size):
        yield (pieces[i], len(pieces[i])) if i < len(pieces) else (batch[:1], 0)


def total(loss, tokens):
    """The sums over all processes of a loss and a count of tokens."""
    if world_size == 1:
        return loss, tokens
    loss, tokens = reduced([loss, tokens], dist.ReduceOp.SUM)
    return loss, int(tokens)


def largest(number):
    """The largest of the processes' numbers."""
    return number if world_size == 1 else reduced([number], dist.ReduceOp.MAX)[0]


def reduced(numbers, op):
    """All processes' lists of numbers, reduced place by place."""
    numbers = torch.tensor(numbers, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(numbers, op)
    return numbers.tolist()


def backward(model, loss):
    """loss.backward(). FSDP averages the gradients over processes; the shares of a loss are to be added."""
    (loss * world_size if sharded(model) else loss).backward()


def add_gradients(model):
    """Each process's gradients become the sum over all. FSDP has done so already."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    if world_size > 1 and not sharded(model):
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for g, summed in zip(grads, flat.split([g.numel() for g in grads])):
            g.copy_(summed.view_as(g))


def from_first(value):
    """The first process's value, for all: what floating point decides must not differ between them."""
    if world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


# ------------------------------------------------------------------------------------------------- shards
def sharded(model):
    return hasattr(model, "reshard")                        # FSDP's own


def shard(model, device):
    """Divide a model on the CPU between the processes, each part on its device; layers are gathered one at a time. ->
    model"""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    blank = copy.deepcopy(model, {id(p): torch.nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()})
    mesh = init_device_mesh(torch.device(device).type, (world_size,))
    for part in (*model.layers, model):
        fully_shard(part, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")           # leaves embedding, norm and head whole: lm_head follows
    model.blank = lambda: blank                             # not a submodule
    return model


def settled(model):
    """The model with the weights that hidden() has gathered let go: what an optimizer or a file takes hold of."""
    if sharded(model):
        model.reshard()
    return model


def copy_of(model):
    """copy.deepcopy, which FSDP refuses, and which reads the memory that a tensor of lab/plan.py does not have."""
    if not sharded(model):
        return copy.deepcopy(model, {id(p): torch.nn.Parameter(p.detach().clone(), p.requires_grad)
                                     for p in model.parameters()})
    pairs = zip(model.blank().parameters(), settled(model).parameters())
    filled = {id(empty): torch.nn.Parameter(p.full_tensor().cpu(), p.requires_grad) for empty, p in pairs}
    return shard(copy.deepcopy(model.blank(), filled), model.device).train(model.training)


def whole(x):
    """A tensor as it is, or gathered where it is sharded, for every process."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def gathered(state):
    """A state dict as one process has it; sharded tensors are gathered one by one, for the first process and on its
    CPU only."""
    if isinstance(state, dict):
        return {k: gathered(v) for k, v in state.items()}
    if isinstance(state, list):
        return [gathered(x) for x in state]
    if not hasattr(state, "full_tensor"):
        return state
    full = state.full_tensor()
    return full.cpu() if rank == 0 else None


def load(model, optimizer, saved):
    """Load gathered state dicts, saved["model"] and saved["optimizer"]: those of any number of processes fit any
    other."""
    state = saved["optimizer"]["state"]
    if sharded(model):
        from torch.distributed.tensor import distribute_tensor

        def part(x, p):
            return distribute_tensor(x, p.device_mesh, p.placements) if x.shape == p.shape else x
        saved["model"] = {k: part(saved["model"][k], p) for k, p in model.state_dict().items()}
        params = [p for group in optimizer.param_groups for p in group["params"]]       # in the order of their numbers
        state = {i: {k: part(x, params[i]) for k, x in moments.items()} for i, moments in state.items()}
        if "copies" in saved["optimizer"]:
            saved["optimizer"]["copies"] = [part(x, p) for x, p in zip(saved["optimizer"]["copies"], params)]
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"] | {"state": state})
