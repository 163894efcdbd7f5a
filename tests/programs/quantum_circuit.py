"""Variational quantum eigensolver: complex state vectors, gates by einsum, energy by autograd."""

import numpy as np
import torch

QUBITS = 3


def apply(state, gate, qubit):
    state = torch.movedim(state, qubit, 0)
    state = torch.tensordot(gate, state, dims=([1], [0]))
    return state.movedim(0, qubit)


def rotation_y(angle):
    c, s = torch.cos(angle / 2), torch.sin(angle / 2)
    return torch.stack((torch.stack((c, -s)), torch.stack((s, c))))


def rotation_z(angle):
    return torch.diag(torch.exp(torch.stack((-0.5j * angle, 0.5j * angle))))


def controlled_z(state, a, b):
    sign = torch.ones_like(state)
    index = [slice(None)] * QUBITS
    index[a] = index[b] = 1
    sign[tuple(index)] = -1
    return state * sign


def main():
    rng = np.random.default_rng(45)
    dtype = torch.get_default_dtype()
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    h = rng.standard_normal((8, 8)) + 1j * rng.standard_normal((8, 8))
    h = torch.tensor(h).to(complex_dtype)
    h = (h + h.conj().T) / 2
    angles = torch.tensor(rng.standard_normal((2, QUBITS, 2)), dtype=dtype, requires_grad=True)
    optimizer = torch.optim.Adam([angles], lr=0.1)
    out = []
    for _ in range(15):
        state = torch.zeros((2,) * QUBITS, dtype=complex_dtype)
        state[0, 0, 0] = 1
        for layer in angles:
            for q in range(QUBITS):
                state = apply(state, rotation_y(layer[q, 0]).to(complex_dtype), q)
                state = apply(state, rotation_z(layer[q, 1]), q)
            state = controlled_z(controlled_z(state, 0, 1), 1, 2)
        psi = state.reshape(-1)
        energy = torch.vdot(psi, h @ psi).real
        optimizer.zero_grad()
        energy.backward()
        optimizer.step()
        out.append(energy.item())
    probability = psi.detach().abs() ** 2
    ground = torch.linalg.eigvalsh(h)[0]
    assert torch.is_complex(psi) and abs(probability.sum().item() - 1) < 1e-4
    return [*out, ground.item(), probability.numpy(), angles.grad.numpy(),
            psi.angle().cos().tolist()]


if __name__ == "__main__":
    print(main())
