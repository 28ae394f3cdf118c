// Python bindings of what conversion needs: the search for trellises and the factors of Hessians.
#pragma once

#include <pybind11/pybind11.h>

namespace exl::cpu {

void bind_quantize(pybind11::module_& module);

}  // namespace exl::cpu
