// The bindings of the operations that choose experts, and weigh and combine what they make.
#pragma once
#include "session.h"

namespace lltool {

void bind_routing(nb::class_<Session>& executor);

} // namespace lltool
