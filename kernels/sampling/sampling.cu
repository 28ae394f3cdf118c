#include "sampling/sampling.cuh"

namespace {

constexpr int32_t max_vocab = 1 << 18;

exl_status check(const exl_sample_args* args) {
    EXL_REQUIRE(args->rows > 0, exl_bad_shape, "rows", "found %d, expected at least 1", args->rows);
    EXL_REQUIRE(args->vocab > 0 && args->vocab <= max_vocab, exl_bad_shape, "vocab", "found %d, expected 1 to %d",
                args->vocab, max_vocab);
    EXL_REQUIRE_ALIGNED(args->logits, 4);
    EXL_REQUIRE_ALIGNED(args->scratch, 4);
    EXL_REQUIRE_ALIGNED(args->row, 8);
    EXL_REQUIRE_ALIGNED(args->tokens, 4);
    EXL_REQUIRE(args->logits_stride >= args->vocab, exl_bad_shape, "logits_stride", "found %lld, expected at least %d",
                static_cast<long long>(args->logits_stride), args->vocab);
    EXL_REQUIRE(args->scratch != args->logits, exl_bad_argument, "scratch", "found the logits themselves");
    if (args->history) EXL_REQUIRE_ALIGNED(args->history, 4);
    if (args->bias_ids) EXL_REQUIRE_ALIGNED(args->bias_ids, 4);
    if (args->bias_ids) EXL_REQUIRE_ALIGNED(args->biases, 4);
    if (!args->mask) return exl_ok;
    EXL_REQUIRE_ALIGNED(args->mask, 4);
    EXL_REQUIRE(args->mask_stride >= (args->vocab + 31) / 32, exl_bad_shape, "mask_stride",
                "found %lld, expected at least %d", static_cast<long long>(args->mask_stride), (args->vocab + 31) / 32);
    return exl_ok;
}

}  // namespace

EXL_API exl_status exl_sample(const exl_sample_args* args, exl_stream stream) {
    EXL_TRY(check(args));
    return EXL_LAUNCH(exl::sampling::sample_rows, static_cast<uint32_t>(args->rows), exl::sampling::threads, 0, stream,
                      *args);
}
