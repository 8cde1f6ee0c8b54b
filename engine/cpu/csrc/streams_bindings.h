// The bindings of the operations on residual streams.
#pragma once
#include "session.h"

namespace lltool {

void bind_streams(nb::class_<Session>& executor);

} // namespace lltool
