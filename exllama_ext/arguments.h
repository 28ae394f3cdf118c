// Arguments from Python: arrays, and the checks that all bindings of the CPU half share.
#pragma once

#include <pybind11/numpy.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "cpu/exl_cpu.h"

namespace exl::cpu {

namespace py = pybind11;

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;
using Words = py::array_t<uint16_t, py::array::c_style>;

inline void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

// For checks of every row: the text is put together only where one fails.
template <typename... Parts> [[noreturn]] void refuse(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::invalid_argument(text.str());
}

inline const Kernels& kernels_of(const std::string& level) {
    const Kernels* kernels = kernels_for(level.c_str());
    require(kernels != nullptr, "this machine cannot run the CPU level asked for");
    return *kernels;
}

inline layouts::Codebook codebook_of(const std::string& name) {
    const char* names[] = {"3inst", "mcg", "mul1"};
    int32_t number = 0;
    while (number < 3 && name != names[number]) ++number;
    require(number < 3, "unknown codebook");
    return static_cast<layouts::Codebook>(number);
}

}  // namespace exl::cpu
