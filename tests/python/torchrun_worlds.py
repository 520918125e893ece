"""One rank under torchrun: two worlds one after the other, with torch.distributed (gloo) alive beside them."""

import torch
import torch.distributed as dist

import tutti

dist.init_process_group("gloo")
for _ in range(2):
    with tutti.World() as world:
        assert (world.rank, world.size) == (dist.get_rank(), dist.get_world_size())
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64):
            ours = torch.arange(100_000, dtype=torch.int64).remainder(7).add(world.rank).to(dtype)
            theirs = ours.to(torch.float32)
            world.all_reduce(ours)
            dist.all_reduce(theirs)
            assert torch.equal(ours.to(torch.float32), theirs), dtype
        part = torch.full((1000,), world.rank, dtype=torch.float32)
        everyone = torch.empty(1000 * world.size)
        world.all_gather(part, everyone)
        assert torch.equal(everyone, torch.arange(world.size).repeat_interleave(1000).float())
dist.destroy_process_group()
