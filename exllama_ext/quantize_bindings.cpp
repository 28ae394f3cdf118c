#include "quantize_bindings.h"

#include <mutex>
#include <string>

#include "arguments.h"
#include "cpu/block_ldl.h"
#include "cpu/trellis_search.h"

namespace exl::cpu {

namespace {

using Doubles = py::array_t<double, py::array::c_style>;

// A team runs one thing at a time.
std::mutex& one_at_a_time() {
    static std::mutex mutex;
    return mutex;
}

TrellisSearch make_search(int32_t rate2, const std::string& codebook, const std::string& level) {
    return TrellisSearch(rate2, codebook_of(codebook), kernels_of(level));
}

// -> words (rows / 16, columns / 16, 8 * rate2), values (rows, columns).
py::tuple quantize(const TrellisSearch& search, Team& team, const Floats& targets, const py::object& feedback) {
    require(targets.ndim() == 2 && targets.shape(0) % 16 == 0 && targets.shape(1) % 16 == 0,
            "targets must be a matrix whose sides are multiples of 16");
    const int64_t rows = targets.shape(0), columns = targets.shape(1);
    Floats factor;
    if (!feedback.is_none()) {
        factor = feedback.cast<Floats>();
        require(factor.ndim() == 2 && factor.shape(0) == rows && factor.shape(1) == rows,
                "feedback must be (rows, rows)");
    }
    Words words({rows / 16, columns / 16, int64_t(8 * search.rate2())});
    Floats values({rows, columns});
    const TrellisMatrix matrix{
        targets.data(),       feedback.is_none() ? nullptr : factor.data(), rows, columns, words.mutable_data(),
        values.mutable_data()};
    {
        py::gil_scoped_release release;
        const std::lock_guard<std::mutex> guard(one_at_a_time());
        search.quantize(team, matrix);
    }
    return py::make_tuple(words, values);
}

// -> the factor, or None where the matrix is not positive definite. The matrix is destroyed.
py::object factor(Team& team, Doubles matrix) {
    require(matrix.ndim() == 2 && matrix.shape(0) == matrix.shape(1) && matrix.shape(0) % 16 == 0,
            "the matrix must be square, its side a multiple of 16");
    const int64_t n = matrix.shape(0);
    Floats result({n, n});
    double* input = matrix.mutable_data();
    float* output = result.mutable_data();
    bool definite = false;
    {
        py::gil_scoped_release release;
        const std::lock_guard<std::mutex> guard(one_at_a_time());
        definite = block_ldl(team, input, n, output);
    }
    return definite ? py::object(result) : py::none();
}

}  // namespace

void bind_quantize(py::module_& m) {
    m.def("block_ldl", factor);
    py::class_<TrellisSearch>(m, "TrellisSearch").def(py::init(&make_search)).def("quantize", quantize);
}

}  // namespace exl::cpu
