"""What training knows of each particle goes to another process and comes back as it was."""

import torch

from emspatialvae.training.particle_table import ParticleTable


def filled(n: int, z_dim: int) -> ParticleTable:
    table = ParticleTable.zeros(n, z_dim)
    for values in table.state_dict().values():
        values.copy_(torch.randn(values.shape))
    return table


def test_rows_come_back_as_they_were():
    for z_dim in (1, 2, 5):
        here, there = filled(7, z_dim), ParticleTable.zeros(7, z_dim)
        rows = torch.tensor([5, 0, 3])
        there.put(rows, here.rows(rows))
        for name, values in here.state_dict().items():
            assert torch.equal(getattr(there, name)[rows], values[rows])
            assert not getattr(there, name)[[1, 2, 4, 6]].any()


def test_a_rank_without_particles_in_a_batch_has_nothing_to_tell():
    table = filled(4, 2)
    none = torch.zeros(0, dtype=torch.long)
    assert table.rows(none).shape == (0, 8)
    before = {name: values.clone() for name, values in table.state_dict().items()}
    table.put(none, table.rows(none))
    assert all(torch.equal(before[name], values) for name, values in table.state_dict().items())
