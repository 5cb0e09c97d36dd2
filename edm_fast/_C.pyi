"""The compiled kernels, as functions of pointers and numbers. Call them through edm_fast.ops."""

from typing import Protocol

Shape = tuple[int, int, int]  # samples, channels, pixels
View = tuple[int, int, int, int, int]  # pointer, dtype code, strides of sample, channel and pixel in elements
AttentionShape = tuple[int, int, int, int]  # samples, heads, tokens, head channels
Tokens = tuple[int, int, int, int, int]  # pointer, strides of sample, token, head and channel in elements

Address = int
Rows = tuple[Address, int]  # float32 rows: pointer, elements from a sample to the next
Source = tuple[Address, int, int]  # pointer, channels, elements from a pixel to the next
Filter = tuple[int, int, list[float]]  # direction, padding, taps
Sum = tuple[Address, float, Address]  # addend, sum_scale, sum
Norm = tuple[Address, Address, int, float, bool]  # weight, bias, groups, eps, silu
ChunkMoments = tuple[Address, Address, int]  # of both sources, pixels of a chunk
Quad = tuple[Address, Address, Address, Address]  # out, plain, mean, rstd
ImageGradients = tuple[Address, Address, Address]  # of out, plain, sum
InputGradients = tuple[Address, Address, Address, Address, Address, Address, Address]

version: str
compiler: str
openmp: bool

def noise_words(seed: int, block: int, draw: int, domain: int) -> tuple[int, int, int, int]: ...

class _Plan(Protocol):
    # Sizes are (height, width), references (place, offset), filters (direction, padding, taps).
    def __init__(self, dtype: int, /) -> None: ...
    def conv2d(
        self,
        size: tuple[int, int],
        channels: tuple[int, int],
        out_channels: int,
        kernel: int,
        padding: int,
        algorithm: int,
        factors: int,
        weight: int,
        bias: int,
        scale: float,
        residual_shift: int,
        source: tuple[tuple[int, int], tuple[int, int]],
        residual: tuple[int, int],
        out: tuple[int, int],
        /,
    ) -> None: ...
    def group_norm_silu(
        self,
        size: tuple[int, int],
        channels: tuple[int, int],
        norm: tuple[int, int, int, float, bool],
        filter: tuple[int, int, list[float]],
        source: tuple[tuple[int, int], tuple[int, int]],
        pre_bias: tuple[int, int],
        scale: tuple[int, int],
        shift: tuple[int, int],
        out: tuple[int, int],
        plain: tuple[int, int],
        /,
    ) -> None: ...
    def resample(
        self,
        size: tuple[int, int],
        channels: int,
        filter: tuple[int, int, list[float]],
        x: tuple[int, int],
        out: tuple[int, int],
        /,
    ) -> None: ...
    def residual(
        self, pixels: int, channels: int, scale: float, a: tuple[int, int], b: tuple[int, int], out: tuple[int, int], /
    ) -> None: ...
    def attention(
        self, heads: int, tokens: int, head_channels: int, qkv: tuple[int, int], out: tuple[int, int], /
    ) -> None: ...
    def finish(
        self,
        arena_bytes: int,
        input_bytes: int,
        output_bytes: int,
        one_thread_per_sample: bool,
        samples_at_once: int,
        /,
    ) -> None: ...
    def run(self, samples: int, input: int, output: int, modulation: tuple[int, int], threads: int, /) -> None: ...
    def memory(self, samples: int, threads: int, /) -> int: ...

class _Cpu(Protocol):
    def randn(self, shape: Shape, seeds: int, draw: int, domain: int, out: View, threads: int, /) -> None: ...
    def solver_step(
        self,
        shape: Shape,
        table: int,
        row: int,
        row_offset: int,
        state_dtype: int,
        state: tuple[View, View, View, View],
        model_output: View,
        guide_output: View,
        seeds: int,
        noise: View,
        net_input: View,
        denoised: View,
        first_bad: int,
        threads: int,
        /,
    ) -> None: ...
    def noise_augment(
        self,
        shape: Shape,
        rule: list[float],
        draw: int,
        seeds: int,
        sigma: int,
        rows: int,
        images: View,
        noise: View,
        net_input: View,
        threads: int,
        /,
    ) -> None: ...
    def denoising_loss(
        self,
        shape: Shape,
        draw: int,
        seeds: int,
        rows: int,
        images: View,
        noise: View,
        model_output: View,
        loss: int,
        error: View,
        slope: View,
        threads: int,
        /,
    ) -> None: ...
    # The shape of the ops below is samples, height, width; that of residual samples, pixels, channels.
    def group_norm_silu(
        self,
        shape: Shape,
        dtype: int,
        first: Source,
        second: Source,
        sum: Sum,
        moments: ChunkMoments,
        norm: Norm,
        pre_bias: Rows,
        scale: Rows,
        shift: Rows,
        filter: Filter,
        outputs: Quad,
        threads: int,
        /,
    ) -> None: ...
    def group_norm_silu_grad(
        self,
        shape: Shape,
        dtype: int,
        first: Source,
        second: Source,
        sum: Sum,
        moments: ChunkMoments,
        norm: Norm,
        pre_bias: Rows,
        scale: Rows,
        shift: Rows,
        filter: Filter,
        outputs: Quad,
        grads_in: ImageGradients,
        grads_out: InputGradients,
        threads: int,
        /,
    ) -> None: ...
    def resample(
        self, shape: Shape, channels: int, dtype: int, filter: Filter, x: Address, out: Address, threads: int, /
    ) -> None: ...
    def residual(
        self,
        shape: Shape,
        dtype: int,
        a: Address,
        b: Address,
        bias: Address,
        scale: float,
        out: Address,
        out_stride: int,
        moments: Address,
        threads: int,
        /,
    ) -> None: ...
    def attention(
        self,
        shape: AttentionShape,
        dtype: int,
        q: Tokens,
        k: Tokens,
        v: Tokens,
        out: Tokens,
        log_sum_exp: int,
        threads: int,
        /,
    ) -> None: ...
    def attention_grad(
        self,
        shape: AttentionShape,
        dtype: int,
        q: Tokens,
        k: Tokens,
        v: Tokens,
        out: Tokens,
        log_sum_exp: int,
        grad_out: Tokens,
        grad_q: Tokens,
        grad_k: Tokens,
        grad_v: Tokens,
        threads: int,
        /,
    ) -> None: ...
    # The shape: samples, channels, height, width.
    def augment(
        self,
        shape: tuple[int, int, int, int],
        images: View,
        blit: Address,
        geometry: Address,
        colour: Address,
        out: View,
        threads: int,
        /,
    ) -> None: ...
    # csrc/bindings/plan.h
    Plan: type[_Plan]
    def linear(
        self, shape: Shape, x: int, weight: int, bias: int, addend: int, silu: bool, out: int, threads: int, /
    ) -> None: ...
    def conv2d_packed_size(
        self, in_channels: int, out_channels: int, kernel: int, algorithm: int, factors: int, /
    ) -> int: ...
    def multiplies_pairs(self) -> bool: ...
    def multiplies_tiles(self) -> bool: ...
    def pack_conv2d(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        algorithm: int,
        factors: int,
        turned: bool,
        weight: int,
        packed: int,
        threads: int,
        /,
    ) -> None: ...
    def dropout(self, elements: int, dtype: int, p: float, seed: int, x: int, out: int, threads: int, /) -> None: ...
    def conv2d_weight_grad(
        self,
        shape: Shape,
        channels: tuple[int, int],
        padding: int,
        algorithm: int,
        dtype: int,
        x: int,
        grad: int,
        out: int,
        threads: int,
        /,
    ) -> None: ...
    def conv2d(
        self,
        shape: Shape,
        channels: tuple[int, int],
        out_channels: int,
        kernel: int,
        padding: int,
        algorithm: int,
        factors: int,
        dtype: int,
        first: int,
        second: int,
        weight: int,
        bias: int,
        channel_bias: tuple[int, int],
        residual: int,
        residual_shift: int,
        scale: float,
        out: int,
        threads: int,
        /,
    ) -> None: ...
    def use_huge_pages(self, memory: int, bytes: int, /) -> None: ...
    def isa(self) -> str: ...
    def available_isas(self) -> list[str]: ...
    def use_isa(self, name: str) -> None: ...

class _Cuda(Protocol):
    # "" in a build without CUDA, which has none of the functions below and says why in `missing`.
    architectures: str
    missing: str
    def randn(
        self, shape: Shape, seeds: int, draw: int, domain: int, out: View, device: int, stream: int, /
    ) -> None: ...
    def solver_step(
        self,
        shape: Shape,
        table: int,
        row: int,
        row_offset: int,
        state_dtype: int,
        state: tuple[View, View, View, View],
        model_output: View,
        guide_output: View,
        seeds: int,
        noise: View,
        net_input: View,
        denoised: View,
        first_bad: int,
        device: int,
        stream: int,
        /,
    ) -> None: ...
    def noise_augment(
        self,
        shape: Shape,
        rule: list[float],
        draw: int,
        seeds: int,
        sigma: int,
        rows: int,
        images: View,
        noise: View,
        net_input: View,
        device: int,
        stream: int,
        /,
    ) -> None: ...
    def denoising_loss(
        self,
        shape: Shape,
        draw: int,
        seeds: int,
        rows: int,
        images: View,
        noise: View,
        model_output: View,
        loss: int,
        error: View,
        slope: View,
        device: int,
        stream: int,
        /,
    ) -> None: ...
    # The shape of the ops below is samples, height, width; that of residual samples, pixels, channels.
    def group_norm_silu(
        self,
        shape: Shape,
        dtype: int,
        first: Source,
        second: Source,
        sum: Sum,
        moments: ChunkMoments,
        norm: Norm,
        pre_bias: Rows,
        scale: Rows,
        shift: Rows,
        filter: Filter,
        outputs: Quad,
        device: int,
        stream: int,
        /,
    ) -> None: ...
    def group_norm_silu_grad(
        self,
        shape: Shape,
        dtype: int,
        first: Source,
        second: Source,
        sum: Sum,
        moments: ChunkMoments,
        norm: Norm,
        pre_bias: Rows,
        scale: Rows,
        shift: Rows,
        filter: Filter,
        outputs: Quad,
        grads_in: ImageGradients,
        grads_out: InputGradients,
        device: int,
        stream: int,
        /,
    ) -> None: ...
    def resample(
        self,
        shape: Shape,
        channels: int,
        dtype: int,
        filter: Filter,
        x: Address,
        out: Address,
        device: int,
        stream: int,
        /,
    ) -> None: ...
    def residual(
        self,
        shape: Shape,
        dtype: int,
        a: Address,
        b: Address,
        bias: Address,
        scale: float,
        out: Address,
        out_stride: int,
        moments: Address,
        device: int,
        stream: int,
        /,
    ) -> None: ...
    # The shape: samples, height, width of x. Channels: of x and of out. Scratch: partial, arrived.
    def conv2d_split(
        self,
        shape: Shape,
        channels: tuple[int, int],
        kernel: int,
        padding: int,
        dtype: int,
        x: Address,
        weight: Address,
        bias: Address,
        residual: Address,
        scale: float,
        out: Address,
        moments: Address,
        scratch: tuple[Address, Address],
        device: int,
        stream: int,
        /,
    ) -> None: ...
    def conv2d_split_partial(
        self, samples: int, pixels: int, in_channels: int, out_channels: int, kernel: int, /
    ) -> int: ...
    # The shape: samples, channels, height, width.
    def augment(
        self,
        shape: tuple[int, int, int, int],
        images: View,
        blit: Address,
        geometry: Address,
        colour: Address,
        out: View,
        device: int,
        stream: int,
        /,
    ) -> None: ...

cpu: _Cpu
cuda: _Cuda
