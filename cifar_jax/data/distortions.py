"""Blurs and bends images, and draws clouds: the geometry of the corruptions.

Images are float32 [images, height, width, channels], from 0 to 1.
"""

import numpy as np
from scipy import ndimage

Random = np.random.Generator


def defocus(random: Random, x: np.ndarray, radius: float, softness: float) -> np.ndarray:
    y = np.arange(-8, 9)
    disk = (y[:, None] ** 2 + y**2 <= radius**2).astype(float)
    edge = np.exp(-(np.arange(-1, 2) ** 2) / (2 * softness**2))
    soft = ndimage.convolve(disk, np.outer(edge, edge), mode="constant")
    return ndimage.convolve(x, (soft / soft.sum())[None, 5:12, 5:12, None], mode="mirror")


def blur_through_glass(
    random: Random, x: np.ndarray, sigma: float, reach: float, rounds: float
) -> np.ndarray:
    reach = int(reach)
    sigmas = (0, sigma, sigma, 0)
    x = np.floor(ndimage.gaussian_filter(x, sigmas, mode="nearest") * 255) / 255
    count, height, width, _ = x.shape
    y, across = np.mgrid[:height, :width]
    # Pixels at the upper and left edges stay.
    moving = (y > reach) & (across > reach)
    for _ in range(int(rounds)):
        dy, dx = random.integers(-reach, reach, (2, count, height, width)) * moving
        x = x[np.arange(count)[:, None, None], y + dy, across + dx]
    return ndimage.gaussian_filter(x, sigmas, mode="nearest")


def blur_along(x: np.ndarray, radius: float, sigma: float, degrees: np.ndarray) -> np.ndarray:
    """Blurs along one direction per image, to one side, as ImageMagick does."""
    width = 2 * int(np.ceil(radius)) + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    angle = np.deg2rad(degrees)
    numbers, rows, columns = (np.arange(size) for size in x.shape[:3])
    out = np.zeros_like(x)
    for step, weight in enumerate(weights / weights.sum()):
        dy, dx = (np.ceil(step * f(angle) - 0.5).astype(int) for f in (np.sin, np.cos))
        y = np.clip(rows + dy[:, None], 0, rows[-1])
        across = np.clip(columns + dx[:, None], 0, columns[-1])
        out += weight.astype(x.dtype) * x[numbers[:, None, None], y[:, :, None], across[:, None]]
    return out


def _zoom_matrix(size: int, factor: float) -> np.ndarray:
    """Returns the matrix [size, size] that enlarges a line around its middle, linearly."""
    cut = int(np.ceil(size / factor))
    first = (size - cut) // 2
    large = ndimage.zoom(np.eye(size)[first : first + cut], (factor, 1), order=1)
    first = (len(large) - size) // 2
    return large[first : first + size].astype(np.float32)


def zoom(x: np.ndarray, factor: float) -> np.ndarray:
    rows, columns = (_zoom_matrix(size, factor) for size in x.shape[1:3])
    return columns @ np.moveaxis(np.tensordot(x, rows, (1, 1)), 3, 1)


def blur_by_zoom(random: Random, x: np.ndarray, most: float) -> np.ndarray:
    factors = np.arange(1, most, 0.01)
    return (x + sum(zoom(x, factor) for factor in factors)) / (len(factors) + 1)


def draw_clouds(random: Random, shape: tuple[int, ...], decay: float) -> np.ndarray:
    """Returns random clouds [count, height, width] by midpoint displacement, each from 0 to 1."""
    count, *sides = shape
    field, amplitude = np.zeros((count, 1, 1)), 1.0
    while field.shape[1] < max(sides):
        size = 2 * field.shape[1]
        new = np.zeros((count, size, size))
        new[:, ::2, ::2] = field
        near = field + np.roll(field, -1, 1)
        middle = (near + np.roll(near, -1, 2)) / 4
        new[:, 1::2, 1::2] = middle = middle + random.uniform(-amplitude, amplitude, middle.shape)
        for axis, place in ((2, np.s_[:, ::2, 1::2]), (1, np.s_[:, 1::2, ::2])):
            four = field + np.roll(field, -1, axis) + middle + np.roll(middle, 1, 3 - axis)
            new[place] = four / 4 + random.uniform(-amplitude, amplitude, four.shape)
        field, amplitude = new, amplitude / decay**2
    field -= field.min((1, 2), keepdims=True)
    return (field / field.max((1, 2), keepdims=True))[:, : sides[0], : sides[1]]


def _sample(x: np.ndarray, y: np.ndarray, across: np.ndarray, repeat: bool) -> np.ndarray:
    """Returns images at places [images, height, width] between the pixels, bilinearly.

    Beyond the border the images are mirrored, as SciPy's mode "reflect" does if `repeat`, in which
    the pixels at the border come twice, and else as its mode "mirror".
    """

    def reflect(places: np.ndarray, size: int) -> np.ndarray:
        last = 2 * size - (1 if repeat else 2)
        places = places % (last + repeat)
        return np.minimum(places, last - places)

    top, left = np.floor(y).astype(int), np.floor(across).astype(int)
    numbers = np.arange(len(x))[:, None, None]
    out = np.zeros_like(x)
    for dy, dx in np.ndindex(2, 2):
        weight = (1 - abs(y - top - dy)) * (1 - abs(across - left - dx))
        place = (reflect(top + dy, x.shape[1]), reflect(left + dx, x.shape[2]))
        out += weight[..., None].astype(x.dtype) * x[numbers, *place]
    return out


def bend(random: Random, x: np.ndarray, move: float, sigma: float, affine: float) -> np.ndarray:
    """Moves three points at random, and everything between them; then each pixel for itself."""
    count, height, width, _ = x.shape
    middle, reach = np.array([width // 2, height // 2]), min(height, width) // 3
    before = middle + reach * np.array([(1, 1), (1, -1), (-1, -1)])
    after = before + random.uniform(-affine, affine, (count, 3, 2))
    # The places where the pixels come from: an affine function of those where they go.
    ones = np.ones((count, 3, 1))
    back = np.linalg.solve(np.concatenate([after, ones], 2), np.broadcast_to(before, after.shape))
    y, across = np.mgrid[:height, :width].astype(float)
    places = np.stack([across, y, np.ones_like(y)], 2) @ back[:, None]
    x = _sample(x, places[..., 1], places[..., 0], repeat=False)
    fields = random.uniform(-1, 1, (2, count, height, width))
    dx, dy = move * ndimage.gaussian_filter(fields, (0, 0, sigma, sigma), truncate=3)
    return _sample(x, y + dy, across + dx, repeat=True)
