// Python bindings of the GPU half.
#pragma once

#include <pybind11/pybind11.h>

namespace exl::gpu {

void bind(pybind11::module_& module);

}  // namespace exl::gpu
