#include "activation/activation.cuh"

namespace {

exl_status check_rows(const void* first, int64_t stride, int32_t width, const char* name) {
    EXL_REQUIRE(first != nullptr, exl_bad_argument, name, "found a null pointer");
    EXL_REQUIRE(reinterpret_cast<uintptr_t>(first) % 4 == 0, exl_misaligned, name, "found %p, expected a multiple of 4",
                first);
    EXL_REQUIRE(stride % 2 == 0, exl_misaligned, name, "found a stride of %lld, expected a multiple of 2",
                static_cast<long long>(stride));
    EXL_REQUIRE(stride >= width, exl_bad_shape, name, "found a stride of %lld, expected at least %d",
                static_cast<long long>(stride), width);
    return exl_ok;
}

template <exl_activation kind> exl_status launch(const exl_gate_args* args, exl_stream stream) {
    const dim3 grid(static_cast<uint32_t>(args->rows),
                    static_cast<uint32_t>((args->width / 2 + exl::gate::threads - 1) / exl::gate::threads));
    return EXL_LAUNCH(exl::gate::gate_rows<kind>, grid, exl::gate::threads, 0, stream, *args);
}

}  // namespace

EXL_API exl_status exl_gate(const exl_gate_args* args, exl_stream stream) {
    EXL_REQUIRE(args->rows > 0, exl_bad_shape, "rows", "found %d, expected at least 1", args->rows);
    EXL_REQUIRE(args->width > 0 && args->width % 2 == 0, exl_bad_shape, "width", "found %d, expected a multiple of 2",
                args->width);
    EXL_TRY(check_rows(args->gate, args->gate_stride, args->width, "gate"));
    EXL_TRY(check_rows(args->up, args->up_stride, args->width, "up"));
    EXL_TRY(check_rows(args->out, args->out_stride, args->width, "out"));
    switch (args->activation) {
        case exl_no_activation: return launch<exl_no_activation>(args, stream);
        case exl_silu: return launch<exl_silu>(args, stream);
        case exl_gelu_tanh: return launch<exl_gelu_tanh>(args, stream);
        case exl_gelu: return launch<exl_gelu>(args, stream);
    }
    return exl::refuse(exl_bad_argument, "activation", "found %d, expected 0 to 3", static_cast<int>(args->activation));
}
