#include "block_ldl.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace exl::cpu {

namespace {

constexpr int side = 16;

// The inverse of a symmetric positive definite block by Gauss-Jordan elimination without pivots; false if it is none.
bool invert(const double* block, int64_t stride, double* inverse) {
    double work[side][2 * side] = {};
    for (int i = 0; i < side; ++i) {
        for (int j = 0; j <= i; ++j) work[i][j] = work[j][i] = block[i * stride + j];
        work[i][side + i] = 1;
    }
    for (int i = 0; i < side; ++i) {
        const double pivot = work[i][i];
        if (!(pivot > 1e-12 * block[i * stride + i]) || !(pivot > 0) || !std::isfinite(pivot)) return false;
        for (int c = 0; c < 2 * side; ++c) work[i][c] /= pivot;
        for (int r = 0; r < side; ++r) {
            if (r == i) continue;
            const double factor = work[r][i];
            for (int c = 0; c < 2 * side; ++c) work[r][c] -= factor * work[i][c];
        }
    }
    for (int i = 0; i < side; ++i) std::copy_n(work[i] + side, side, inverse + side * i);
    return true;
}

struct Elimination {
    double* matrix;
    int64_t n;
    float* factor;
    std::vector<double> before, after;  // the block's columns below it: as they were, (16, n); times D_b^-1, (n, 16)
    bool failed = false;

    void divide_row(int64_t b, const double* inverse, int64_t j) {
        const double* row = matrix + j * n + b;
        for (int c = 0; c < side; ++c) {
            double sum = 0;
            for (int i = 0; i < side; ++i) sum += row[i] * inverse[i * side + c];
            before[size_t(c * n + j)] = row[c];
            after[size_t(j * side + c)] = sum;
            factor[j * n + b + c] = float(sum);
        }
    }
    // Up to the end of the row's diagonal block.
    void subtract_row(int64_t b, int64_t j) {
        const double* own = &after[size_t(j * side)];
        for (int64_t k = b + side; k <= j; k += side) {
            double sum[side] = {};
            for (int i = 0; i < side; ++i)
                for (int c = 0; c < side; ++c) sum[c] += own[i] * before[size_t(i * n + k + c)];
            for (int c = 0; c < side; ++c) matrix[j * n + k + c] -= sum[c];
        }
    }
    void run(Worker& worker) {
        for (int64_t b = 0; b < n; b += side) {
            double inverse[side * side];
            const bool definite = invert(matrix + b * n + b, n, inverse);  // by every worker, to the same bits
            if (!definite) {
                if (worker.id() == 0) failed = true;
                return;
            }
            worker.begin_stage();
            for (int64_t j; (j = b + side + worker.next(side)) < n;)
                for (int64_t r = j; r < j + side; ++r) divide_row(b, inverse, r);
            worker.barrier();
            worker.begin_stage();
            for (int64_t j; (j = b + side + worker.next(side)) < n;)
                for (int64_t r = j; r < j + side; ++r) subtract_row(b, r);
            worker.barrier();
        }
    }
};

}  // namespace

bool block_ldl(Team& team, double* matrix, int64_t n, float* factor) {
    std::fill_n(factor, n * n, 0.0f);
    const size_t size = size_t(n * side);
    Elimination work{matrix, n, factor, std::vector<double>(size), std::vector<double>(size)};
    team.run([](void* context, Worker& worker) { static_cast<Elimination*>(context)->run(worker); }, &work);
    return !work.failed;
}

}  // namespace exl::cpu
