"""From a particle file to a figure and a selection, in Python: simulate, train, decode, select, export.

python examples/api.py
"""

import matplotlib.pyplot as plt
import numpy as np

import emspatialvae as ev

star = ev.simulate("hinge", out="hinge/sim", particles=600, box=32, snr=0.5)
run = ev.train(star, out="hinge/run", z_dim=1, epochs=4, say=print)

z = run.latents.z[:, 0]
images = run.decode(np.quantile(z, [0.05, 0.25, 0.5, 0.75, 0.95])[:, None])
figure, axes = plt.subplots(1, len(images), figsize=(10, 2.4), layout="constrained")
for axis, image in zip(axes, images, strict=True):
    axis.imshow(image, cmap="gray")
    axis.set_axis_off()
figure.savefig("hinge/manifold.png")

print(run.metrics[["epoch", "test_elbo"]].tail(1).to_string(index=False))
print(ev.evaluate(run, "hinge/sim/truth.star").table())
run.export(star="hinge/all.star", csv="hinge/all.csv")
run.select("junk < 0.5", out="hinge/good.star")
