"""The encoder's positions."""

import pytest
import torch

from v1fast.models.encoder import Encoder


@pytest.mark.parametrize(("mu", "pixels"), [((-1, -1), (4, 4)), ((1, 1), (25, 19)), ((1, -1), (25, 4))])
def test_learned_centres_are_in_pixels_of_the_image(mu, pixels):
    model = Encoder((24, 30), torch.ones(1), channels=4).eval()
    with torch.no_grad():
        model.readout.mu.copy_(torch.tensor(mu, dtype=torch.float32).view(1, 1, 1, 2))
    assert model.centres().tolist() == [list(pixels)]
    image = torch.randn(1, 1, 24, 30, requires_grad=True)
    model(image).sum().backward()
    # The pixels that the neuron sees: 9 + 3 - 1 around its centre, as far as the second layer's map goes.
    rows, columns = (image.grad[0, 0].abs().sum(axis).nonzero()[:, 0] for axis in (1, 0))
    for seen, centre, size in ((columns, pixels[0], 30), (rows, pixels[1], 24)):
        assert seen.min() == max(centre - 5, 0)
        assert seen.max() == min(centre + 5, size - 1)
