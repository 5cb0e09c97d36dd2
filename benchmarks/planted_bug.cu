// Writes one element past its buffer. gpu.sh runs it under compute-sanitizer first: a tool that does not report this
// bug has nothing to say about the kernels.
#include <cstdio>

__global__ void write_past_the_end(float* data, int count) {
    data[threadIdx.x + count - 31] = 1.0f;
}

int main() {
    float* data = nullptr;
    if (cudaMalloc(&data, 256 * sizeof(float)) != cudaSuccess) return 2;
    write_past_the_end<<<1, 32>>>(data, 256);
    const cudaError_t error = cudaDeviceSynchronize();
    std::printf("%s\n", cudaGetErrorString(error));
    return error == cudaSuccess ? 0 : 1;
}
