"""A bar for what takes long, gone when done; none where nobody watches (no terminal)."""

from functools import partial

from tqdm import tqdm

bar = partial(tqdm, leave=False, disable=None)
