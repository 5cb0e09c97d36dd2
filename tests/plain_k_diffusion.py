"""The update equations of the samplers over given noise levels, in plain PyTorch: the oracle for those of
`edm_fast.compat.k_diffusion` where k-diffusion itself is not at hand.

model(x, σ) → D with σ a number; draw(x) gives the next noise; λ = -ln σ, as in the DPM-Solver++ papers (Lu et al.).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from scipy import integrate


def pairs(sigmas):
    return list(enumerate(itertools.pairwise(sigmas)))


def churned(rule, model, x, sigmas, draw, s_churn=0, s_tmin=0, s_tmax=math.inf, s_noise=1):
    """Karras et al. 2022, algorithm 2, with three rules."""
    for _, (sigma, sigma_next) in pairs(sigmas):
        gamma = min(s_churn / (len(sigmas) - 1), math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0
        sigma_hat = sigma * (1 + gamma)
        x = x + math.sqrt(sigma_hat**2 - sigma**2) * s_noise * draw(x)
        d = (x - model(x, sigma_hat)) / sigma_hat
        h = sigma_next - sigma_hat
        if rule == "euler" or sigma_next == 0:
            x = x + h * d
        elif rule == "heun":
            x_2 = x + h * d
            x = x + h * (d + (x_2 - model(x_2, sigma_next)) / sigma_next) / 2
        else:
            sigma_mid = math.exp((math.log(sigma_hat) + math.log(sigma_next)) / 2)
            x_2 = x + (sigma_mid - sigma_hat) * d
            x = x + h * (x_2 - model(x_2, sigma_mid)) / sigma_mid
    return x


def ancestral_step(sigma, sigma_next, eta):
    """The deterministic part ends at `down`; noise of level `up` brings the variance to sigma_next²."""
    up = min(sigma_next, eta * math.sqrt(sigma_next**2 / sigma**2 * (sigma**2 - sigma_next**2)))
    return math.sqrt(sigma_next**2 - up**2), up


def ancestral(rule, model, x, sigmas, draw, eta=1, s_noise=1):
    for _, (sigma, sigma_next) in pairs(sigmas):
        down, up = ancestral_step(sigma, sigma_next, eta)
        denoised = model(x, sigma)
        if rule == "euler" or down == 0:
            x = x + (down - sigma) * (x - denoised) / sigma
        elif rule == "dpm_2":
            sigma_mid = math.exp((math.log(sigma) + math.log(down)) / 2)
            x_2 = x + (sigma_mid - sigma) * (x - denoised) / sigma
            x = x + (down - sigma) * (x_2 - model(x_2, sigma_mid)) / sigma_mid
        else:
            h = math.log(sigma / down)
            x_2 = math.exp(-h / 2) * x - math.expm1(-h / 2) * denoised
            x = math.exp(-h) * x - math.expm1(-h) * model(x_2, sigma * math.exp(-h / 2))
        if sigma_next > 0:
            x = x + up * s_noise * draw(x)
    return x


def lms(model, x, sigmas, draw, order=4):
    slopes = []
    for i, (sigma, sigma_next) in pairs(sigmas):
        slopes.append((x - model(x, sigma)) / sigma)
        used = range(max(0, i + 1 - order), i + 1)
        for j in used:
            polynomial = np.poly1d([1.0])
            for k in used:
                if k != j:
                    polynomial *= np.poly1d([1, -sigmas[k]]) / (sigmas[j] - sigmas[k])
            integral = polynomial.integ()
            x = x + float(integral(sigma_next) - integral(sigma)) * slopes[j]
    return x


def dpmpp_2m(model, x, sigmas, draw):
    """DPM-Solver++(2M), algorithm 2 of Lu et al. 2022 (arXiv 2211.01095)."""
    old = h_old = None
    for _, (sigma, sigma_next) in pairs(sigmas):
        denoised = model(x, sigma)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        if old is None:
            extrapolated = denoised
        else:
            r = h_old / h
            extrapolated = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
        x = sigma_next / sigma * x - math.expm1(-h) * extrapolated
        old, h_old = denoised, h
    return x


def dpmpp_sde(model, x, sigmas, draw, eta=1, s_noise=1, r=0.5):
    for _, (sigma, sigma_next) in pairs(sigmas):
        denoised = model(x, sigma)
        if sigma_next == 0:
            return denoised
        sigma_mid = math.exp((1 - r) * math.log(sigma) + r * math.log(sigma_next))
        down, up = ancestral_step(sigma, sigma_mid, eta)
        x_2 = down / sigma * x + (1 - down / sigma) * denoised + up * s_noise * draw(x)
        denoised_2 = model(x_2, sigma_mid)
        mixed = (1 - 1 / (2 * r)) * denoised + 1 / (2 * r) * denoised_2
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = down / sigma * x + (1 - down / sigma) * mixed + up * s_noise * draw(x)
    return x


def integrated(power, span):
    """∫₀^span e^{u-span} u^power du: the weight of a D that grows like λ^power."""
    return integrate.quad(lambda u: math.exp(u - span) * u**power, 0, span, epsabs=0, epsrel=1e-12)[0]


def multistep_sde(points, model, x, sigmas, draw, eta=1, s_noise=1, solver_type="heun"):
    """x' = (σ'/σ) e^{-ηh} x + ∫ e^{…} D dλ + noise, with D the polynomial in λ through the latest `points` values.

    The integral runs over (1+η)λ. "midpoint" takes the line's value in the middle of the step for all of it.
    """
    history = []
    for _, (sigma, sigma_next) in pairs(sigmas):
        denoised = model(x, sigma)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        span = h * (1 + eta)
        history = [(-math.log(sigma), denoised), *history][:points]
        newton = newton_coefficients(history)
        x = sigma_next / sigma * math.exp(-eta * h) * x - math.expm1(-span) * denoised
        if solver_type == "midpoint" and len(newton) > 1:
            x = x - math.expm1(-span) * newton[1] * h / 2
        elif len(newton) > 1:
            # In u = (1+η)(λ - λ_0), which runs from 0 to span.
            x = x + newton[1] * integrated(1, span) / (1 + eta)
            if len(newton) > 2:
                back = history[0][0] - history[1][0]
                # Half of the integral of the square, as k-diffusion has it.
                square = integrated(2, span) / (1 + eta) ** 2 / 2
                x = x + newton[2] * (square + back * integrated(1, span) / (1 + eta))
        if eta:
            x = x + sigma_next * math.sqrt(-math.expm1(-2 * eta * h)) * s_noise * draw(x)
    return x


def newton_coefficients(history):
    """Divided differences of [(λ, D), …]: D + c_1 (λ-λ_0) + c_2 (λ-λ_0)(λ-λ_1)."""
    column = [value for _, value in history]
    times = [time for time, _ in history]
    coefficients = [column[0]]
    for width in range(1, len(history)):
        column = [(column[i] - column[i + 1]) / (times[i] - times[i + width]) for i in range(len(column) - 1)]
        coefficients.append(column[0])
    return coefficients


def dpm_solver_step(order, model, x, sigma, sigma_next, ratio=None):
    """DPM-Solver-1, -2 and -3 of Lu et al. 2022 (arXiv 2206.00927), algorithms 1 and 2, in ε."""
    h = math.log(sigma / sigma_next)

    def epsilon(x, sigma):
        return (x - model(x, sigma)) / sigma

    def at(r):
        return sigma * math.exp(-r * h)

    e = epsilon(x, sigma)
    if order == 1:
        return x - sigma_next * math.expm1(h) * e
    r_1 = ratio or (1 / 2 if order == 2 else 1 / 3)
    difference_1 = epsilon(x - at(r_1) * math.expm1(r_1 * h) * e, at(r_1)) - e
    if order == 2:
        return x - sigma_next * math.expm1(h) * (e + difference_1 / (2 * r_1))
    r_2 = 2 / 3
    x_2 = x - at(r_2) * math.expm1(r_2 * h) * e
    x_2 = x_2 - at(r_2) * r_2 / r_1 * (math.expm1(r_2 * h) / (r_2 * h) - 1) * difference_1
    difference_2 = epsilon(x_2, at(r_2)) - e
    return x - sigma_next * math.expm1(h) * e - sigma_next / r_2 * (math.expm1(h) / h - 1) * difference_2


def end_of(sigma, sigma_next, sigma_end, eta):
    down = max(ancestral_step(sigma, sigma_next, eta)[0] if eta else sigma_next, sigma_end)
    return down, math.sqrt(max(sigma_next**2 - down**2, 0))


def dpm_fast(model, x, sigma_min, sigma_max, n, draw, eta=0, s_noise=1):
    orders = {0: [3] * (n // 3 - 1) + [2, 1], 1: [3] * (n // 3) + [1], 2: [3] * (n // 3) + [2]}[n % 3]
    levels = torch.linspace(math.log(sigma_max), math.log(sigma_min), len(orders) + 1, dtype=torch.float64).exp()
    for i, (sigma, sigma_next) in pairs([*levels[:-1].tolist(), sigma_min]):
        down, up = end_of(sigma, sigma_next, sigma_min, eta)
        x = dpm_solver_step(orders[i], model, x, sigma, down) + up * s_noise * draw(x)
    return x


def dpm_adaptive(model, x, sigma_min, sigma_max, draw, order=3, rtol=0.05, atol=0.0078, h_init=0.05, eta=0, s_noise=1):
    """Steps as long as the two orders agree within the tolerance; an integral controller."""
    sigma, h, low_before = sigma_max, h_init, x
    while math.log(sigma / sigma_min) > 1e-5:
        sigma_next = max(sigma * math.exp(-h), sigma_min)
        down, up = end_of(sigma, sigma_next, sigma_min, eta)
        high = dpm_solver_step(order, model, x, sigma, down)
        low = dpm_solver_step(order - 1, model, x, sigma, down, ratio=1 / 3 if order == 3 else None)
        tolerated = (rtol * torch.maximum(low.abs(), low_before.abs())).clamp(min=atol)
        error = float(((high - low) / tolerated).square().mean().sqrt())
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / (1.5 if eta else order)) - 1)
        if factor >= 0.81:
            x, low_before, sigma = high + up * s_noise * draw(x), low, sigma_next
        h *= factor
    return x
