// A GPU library (libexllama_cuda, _hip or _emu): opened at run time, so that the module imports where there is no driver.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "activation/activation.h"
#include "attention/attention.h"
#include "cache/cache.h"
#include "exl/runtime.h"
#include "gemm/dense.h"
#include "gemm/embedding.h"
#include "gemm/group_affine.h"
#include "gemm/hadamard.h"
#include "gemm/trellis.h"
#include "logits/logits.h"
#include "norm/norm.h"
#include "rope/rope.h"

namespace exl::gpu {

#define EXL_GPU_FUNCTIONS(X)             \
    X(exl_backend)                       \
    X(exl_status_name)                   \
    X(exl_last_error)                    \
    X(exl_last_error_argument)           \
    X(exl_device_count)                  \
    X(exl_device_describe)               \
    X(exl_device_synchronize)            \
    X(exl_memory_allocate)               \
    X(exl_memory_free)                   \
    X(exl_memory_allocate_host)          \
    X(exl_memory_free_host)              \
    X(exl_memory_copy)                   \
    X(exl_memory_set)                    \
    X(exl_stream_create)                 \
    X(exl_stream_destroy)                \
    X(exl_stream_synchronize)            \
    X(exl_graph_begin)                   \
    X(exl_graph_end)                     \
    X(exl_graph_launch)                  \
    X(exl_graph_destroy)                 \
    X(exl_norm)                          \
    X(exl_rope_table)                    \
    X(exl_rope_and_store)                \
    X(exl_kv_cache_geometry)             \
    X(exl_attention)                     \
    X(exl_attention_splits)              \
    X(exl_attention_workspace_size)      \
    X(exl_gate)                          \
    X(exl_logits)                        \
    X(exl_group_affine_describe)         \
    X(exl_group_affine_pack)             \
    X(exl_group_affine_linear)           \
    X(exl_group_affine_linear_workspace) \
    X(exl_dense_linear)                  \
    X(exl_dense_linear_workspace)        \
    X(exl_trellis_linear)                \
    X(exl_trellis_linear_workspace)      \
    X(exl_trellis_expand)                \
    X(exl_hadamard)                      \
    X(exl_group_affine_embed)            \
    X(exl_dense_embed)

// A call that the library refused or could not do; the text names the argument.
class Failure : public std::runtime_error {
 public:
    Failure(std::string status, const std::string& text) : std::runtime_error(text), status(std::move(status)) {}
    std::string status;  // as in exl/status.h without its prefix: "out_of_memory"
};

class Library {
 public:
    // Throws std::runtime_error when the file cannot be opened or lacks a function.
    explicit Library(const std::string& path);
    ~Library();
    Library(const Library&) = delete;
    Library& operator=(const Library&) = delete;

    void check(exl_status status) const;  // throws Failure
    // The invented devices of the emulator, as exl_emulator_devices takes them. Throws for other libraries.
    void emulate(const std::string& devices) const;

#define EXL_MEMBER(name) decltype(&::name) name = nullptr;
    EXL_GPU_FUNCTIONS(EXL_MEMBER)
#undef EXL_MEMBER

 private:
    void* handle_;
};

// Memory of one device, freed with its last user.
class Memory {
 public:
    Memory(std::shared_ptr<const Library> library, int32_t device, int64_t bytes);
    ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    uint8_t* data() const { return static_cast<uint8_t*>(data_); }
    int64_t size() const { return bytes_; }

 private:
    std::shared_ptr<const Library> library_;
    int32_t device_;
    int64_t bytes_;
    void* data_ = nullptr;
};

// Host memory that copies run from at full speed.
class PinnedMemory {
 public:
    PinnedMemory(std::shared_ptr<const Library> library, int64_t bytes);
    ~PinnedMemory();
    PinnedMemory(const PinnedMemory&) = delete;
    PinnedMemory& operator=(const PinnedMemory&) = delete;
    uint8_t* data() const { return static_cast<uint8_t*>(data_); }
    int64_t size() const { return bytes_; }

 private:
    std::shared_ptr<const Library> library_;
    int64_t bytes_;
    void* data_ = nullptr;
};

class Stream {
 public:
    Stream(std::shared_ptr<const Library> library, int32_t device);
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    exl_stream get() const { return stream_; }
    void synchronize() const;

 private:
    std::shared_ptr<const Library> library_;
    exl_stream stream_ = nullptr;
};

}  // namespace exl::gpu
