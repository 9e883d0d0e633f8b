// Pointwise nonlinearities and their derivatives; the numbers are those of `ops::Activation`.
#pragma once
#include "types.cuh"

constexpr float SQRT_2_OVER_PI = 0.7978845608f;

enum Activation : u32 { IDENTITY, SILU, GELU, GELU_TANH, RELU };

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The normal distribution function.
__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * erfcf(-0.7071067812f * x); }

// (1 + tanh(u)) / 2 of GELU's approximation.
__device__ __forceinline__ float gelu_gate(float x) {
    return sigmoid(2.0f * SQRT_2_OVER_PI * (x + 0.044715f * x * x * x));
}

__device__ __forceinline__ float act(u32 kind, float x) {
    switch (kind) {
        case SILU: return x * sigmoid(x);
        case GELU: return x * normal_cdf(x);
        case GELU_TANH: return x * gelu_gate(x);
        // NaN stays NaN, which `fmaxf` would hide.
        case RELU: return x < 0.0f ? 0.0f : x;
        default: return x;
    }
}

__device__ __forceinline__ float act_derivative(u32 kind, float x) {
    switch (kind) {
        case SILU: {
            float g = sigmoid(x);
            return g * (1.0f + x * (1.0f - g));
        }
        case GELU: return normal_cdf(x) + x * 0.3989422804f * expf(-0.5f * x * x);
        case GELU_TANH: {
            float g = gelu_gate(x);
            return g + x * 2.0f * g * (1.0f - g) * SQRT_2_OVER_PI * (1.0f + 0.134145f * x * x);
        }
        case RELU: return x > 0.0f ? 1.0f : 0.0f;
        default: return 1.0f;
    }
}
