from hypothesis import settings

# These machines are noisy: how long an example takes is no sign of anything.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
