"""Small changes that change nothing a caller can see, by their keys (see automatic.py), and why that is so."""

_NOT_CHOSEN = "what stands for classes of target 0 is multiplied by that 0: any finite number does"
_BLOCK = "elements, or rows, do not depend on one another: how many of them are a block decides how fast it is, no more"
_CHOSEN = "vitnp/losses.py: softmax_cross_entropy: chosen = xp.where(targets == 0, 0, shifted)  ->  "
_LIMITED = "np.clip(x_, -SATURATED, SATURATED)"
_WITHIN = f"vitnp/kernels/cpu.py: gelu_tanh: within = x_ if x_ @ x_ < LARGE else {_LIMITED}  ->  within = "
_STEP = "vitnp/optim.py: step: block = 1 << 15 if array_module(flat) is np else layout.size  ->  "

_AVERAGE = "vitnp/moving_average.py: update: block = 1 << 15 if array_module(p) is np else p.size  ->  "
_SIDES = (
    "vitnp/layers/relative_positions.py: backward: "
    "sides = zip(AXES, (s.q_by_row, s.q_by_column), (dpairs.sum(-1), dpairs.sum(-2)), "
)

_ONE_OF_MANY = "one of 2³² draws goes another way"
_CORRUPTION = "vitnp/layers/corruption.py: forward: "
_REPLACED = _CORRUPTION + "replaced = corrupted & (kind < int((MASKED + REPLACED) * 2**32))  ->  "

_SIGMA = "where sigma is 0, so is w_hat, and any divisor but 0 will do"
_ONES = "the members of a group are ones: a quotient is the product"
_ALIKE = "all images, places in a window and channels are of one size: any of them tells it"
_POINTWISE = "a window of one place in strides of one has columns too: they are a copy of the image"

EQUIVALENT: dict[str, str] = {
    _AVERAGE + "block = (1 << 15)": _BLOCK,
    _AVERAGE + "block = p.size": _BLOCK,
    _AVERAGE + "block = 1 << 15 if (array_module(p) is not np) else p.size": _BLOCK,
    _AVERAGE + "block = 2 << 15 if array_module(p) is np else p.size": _BLOCK,
    _AVERAGE + "block = 1 << 16 if array_module(p) is np else p.size": _BLOCK,
    _AVERAGE + "block = 1 << 14 if array_module(p) is np else p.size": _BLOCK,
    _CHOSEN + "chosen = xp.where(targets == 0, 1, shifted)": _NOT_CHOSEN,
    _CHOSEN + "chosen = xp.where(targets == 0, -1, shifted)": _NOT_CHOSEN,
    _STEP + "block = (1 << 15)": _BLOCK,
    _STEP + "block = layout.size": _BLOCK,
    _STEP + "block = 1 << 15 if (array_module(flat) is not np) else layout.size": _BLOCK,
    _STEP + "block = 2 << 15 if array_module(flat) is np else layout.size": _BLOCK,
    _STEP + "block = 1 << 16 if array_module(flat) is np else layout.size": _BLOCK,
    _STEP + "block = 1 << 14 if array_module(flat) is np else layout.size": _BLOCK,
    "vitnp/layers/attention.py: backward: if self.q_norm and self.k_norm:  ->  if (self.q_norm or self.k_norm):": (
        "there are both or neither"
    ),
    "vitnp/layers/head.py: backward: if not self.registers:  ->  if False:": "without registers no row is left",
    _SIDES + "strict=True)  ->  " + _SIDES.partition("backward: ")[2] + "strict=False)": "a grid has two axes, always",
    "vitnp/optim.py: step: if self.weight_decay:  ->  if True:": "without decay the factor is 1 - lr · 0 = 1, exactly",
    _WITHIN + f"x_ if (x_ @ x_ <= LARGE) else {_LIMITED}": "of a sum that is LARGE itself, either will do",
    _WITHIN + f"({_LIMITED})": "where nothing overflows, the limits change no digit, but take time",
    "vitnp/kernels/cpu.py: gelu_tanh: if within is not x_:  ->  if True:": "where nothing was limited, y is as it was",
    "vitnp/kernels/cpu.py: softmax_backward: for dp_, p_, dx_ in _row_blocks(dp.shape[-1], dp, p, dx):  ->  "
    "for dp_, p_, dx_ in _row_blocks(dp.shape[0], dp, p, dx):": _BLOCK,
    _CORRUPTION + "masked = corrupted & (kind < int(MASKED * 2**32))  ->  "
    "masked = corrupted & ((kind <= int(MASKED * 2 ** 32)))": _ONE_OF_MANY,
    _REPLACED + "replaced = corrupted & ((kind <= int((MASKED + REPLACED) * 2 ** 32)))": _ONE_OF_MANY,
    _REPLACED
    + "replaced = corrupted & ((kind >= int((MASKED + REPLACED) * 2 ** 32)))": "as many are kept as are replaced",
    "vitnp/layers/group_norm.py: _group_mean: return (mean * members).reshape(B, 1, C)"
    "  ->  return ((mean / members)).reshape(B, 1, C)": _ONES,
    "vitnp/layers/conv.py: backward: s, divisor = saved.sigma + EPS, xp.where(saved.sigma.real > 0, saved.sigma, 1)"
    "  ->  s, divisor = saved.sigma + EPS, xp.where(saved.sigma.real > 0, saved.sigma, 2)": _SIGMA,
    "vitnp/layers/conv.py: _parts: images = max(1, COLUMNS // (y[0, :, :, 0].size * self.weight[..., 0].size))"
    "  ->  images = max(1, COLUMNS // (y[0, :, :, 1].size * self.weight[..., 0].size))": _ALIKE,
    "vitnp/layers/conv.py: _parts: images = max(1, COLUMNS // (y[0, :, :, 0].size * self.weight[..., 0].size))"
    "  ->  images = max(1, COLUMNS // (y[-1, :, :, 0].size * self.weight[..., 0].size))": _ALIKE,
    "vitnp/layers/conv.py: _parts: images = max(1, COLUMNS // (y[0, :, :, 0].size * self.weight[..., 0].size))"
    "  ->  images = max(1, COLUMNS // (y[0, :, :, 0].size * self.weight[..., 1].size))": _ALIKE,
    "vitnp/layers/conv.py: _parts: images = max(1, COLUMNS // (y[0, :, :, 0].size * self.weight[..., 0].size))"
    "  ->  images = max(1, COLUMNS // (y[0, :, :, -1].size * self.weight[..., 0].size))": _ALIKE,
    "vitnp/layers/conv.py: _parts: images = max(1, COLUMNS // (y[0, :, :, 0].size * self.weight[..., 0].size))"
    "  ->  images = max(1, COLUMNS // (y[0, :, :, 0].size * self.weight[..., -1].size))": _ALIKE,
    "vitnp/layers/conv.py: _columns: if not self.gathers:  ->  if False:": _POINTWISE,
    'vitnp/layers/conv.py: _columns: columns = ctx.scratch("columns", (*places[0].shape[:3], len(places), '
    "x.shape[3]), like=x)"
    '  ->  columns = ctx.scratch("columns", (*places[-1].shape[:3], len(places), x.shape[3]), like=x)': _ALIKE,
    "vitnp/layers/conv.py: _put_back: if not self.gathers:  ->  if False:": _POINTWISE,
    "vitnp/layers/max_pool.py: forward: y, which = xp.where(larger, place, y), "
    'xp.where(larger, i, which).astype("uint8", copy=False)  ->  y, which = xp.where(larger, place, y), '
    'xp.where(larger, i, which).astype("uint8", copy=True)': "a copy of the same bytes",
}
