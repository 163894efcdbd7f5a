// Steps of optimizers that are counted on the device, so that the replays of a graph count on: each count
// goes up by one, and what a rule needs of it is computed in double, by the formulas of multi.py. A table's
// lists are counts; `rate`: null, or the learning rate on the device. Nothing counts where the gradients
// have overflowed. `factors`: so many for each tensor, in the order of the rule's arguments.
// variants: FACTOR=float,double
#include "common.cuh"
#include "multi.cuh"

typedef FACTOR F;

#define FOR_EACH_COUNT                          \
    if (found_inf && *found_inf != 0) return;   \
    if (rate) lr = *rate;                       \
    for (int t = threadIdx.x; t < table.count; t += blockDim.x)

template <int LISTS> __device__ __forceinline__ double counted(const Table<LISTS>& table, int t) {
    float* step = table.template get<float>(0, t);
    return *step += 1.0f;
}

extern "C" __global__ void count_only(const __grid_constant__ Table<1> table, const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    for (int t = threadIdx.x; t < table.count; t += blockDim.x) counted(table, t);
}

extern "C" __global__ void count_adam(const __grid_constant__ Table<1> table, F* factors, double lr,
                                      const float* rate, double beta1, double beta2, double decay,
                                      const float* found_inf) {
    FOR_EACH_COUNT {
        double step = counted(table, t);
        factors[3 * t] = (F)(1 - lr * decay);
        factors[3 * t + 1] = (F)(lr / (1 - pow(beta1, step)));
        factors[3 * t + 2] = (F)sqrt(1 - pow(beta2, step));
    }
}

extern "C" __global__ void count_adamax(const __grid_constant__ Table<1> table, F* factors, double lr,
                                        const float* rate, double beta1, const float* found_inf) {
    FOR_EACH_COUNT factors[t] = (F)(lr / (1 - pow(beta1, counted(table, t))));
}

// The second list has the products of all momenta so far.
extern "C" __global__ void count_nadam(const __grid_constant__ Table<2> table, F* factors, double lr,
                                       const float* rate, double beta1, double beta2, double momentum_decay,
                                       double decay, const float* found_inf) {
    FOR_EACH_COUNT {
        double step = counted(table, t);
        double mu = beta1 * (1 - 0.5 * pow(0.96, step * momentum_decay));
        double next = beta1 * (1 - 0.5 * pow(0.96, (step + 1) * momentum_decay));
        float* so_far = table.get<float>(1, t);
        double product = *so_far = (float)(*so_far * mu);
        factors[4 * t] = (F)(1 - lr * decay);
        factors[4 * t + 1] = (F)(1 - pow(beta2, step));
        factors[4 * t + 2] = (F)(lr * (1 - mu) / (1 - product));
        factors[4 * t + 3] = (F)(lr * next / (1 - product * next));
    }
}

extern "C" __global__ void count_radam(const __grid_constant__ Table<1> table, F* factors, double lr,
                                       const float* rate, double beta1, double beta2, double decay,
                                       const float* found_inf) {
    FOR_EACH_COUNT {
        double step = counted(table, t), power = pow(beta2, step), longest = 2 / (1 - beta2) - 1;
        double length = longest - 2 * step * power / (1 - power);
        double rectification = 0;
        if (length > 5) {
            rectification = sqrt((length - 4) * (length - 2) * longest
                                 / ((longest - 4) * (longest - 2) * length));
        }
        factors[5 * t] = (F)(1 - lr * decay);
        factors[5 * t + 1] = (F)lr;
        factors[5 * t + 2] = (F)(1 - pow(beta1, step));
        factors[5 * t + 3] = (F)sqrt(1 - power);
        factors[5 * t + 4] = (F)rectification;
    }
}

// The second and third lists have the rate and the weight of the average, for this step and then the next.
extern "C" __global__ void count_asgd(const __grid_constant__ Table<3> table, F* factors, double lr,
                                      const float* rate, double lambd, double alpha, double t0,
                                      const float* found_inf) {
    FOR_EACH_COUNT {
        double step = counted(table, t);
        float *eta = table.get<float>(1, t), *mu = table.get<float>(2, t);
        factors[3 * t] = (F)(1 - lambd * *eta);
        factors[3 * t + 1] = (F)*eta;
        factors[3 * t + 2] = (F)*mu;
        *eta = (float)(lr / pow(1 + lambd * lr * step, alpha));
        *mu = (float)(1 / (step - t0 > 1 ? step - t0 : 1.0));
    }
}
