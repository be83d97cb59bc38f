import os

from hypothesis import settings

from tests.shapes import check_shapes_in

# One thread a process, also those that tests start: the models are too small for more, and processes side
# by side that have as many threads as the machine has cores slow each other down many times. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# These machines are noisy: how long an example takes is no sign of anything.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

# Before any test imports the package.
check_shapes_in("dit_heads")
