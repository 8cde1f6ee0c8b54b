// The bindings of the operations that keep a state of fixed size.
#pragma once
#include "session.h"

namespace lltool {

void bind_recurrent(nb::class_<Session>& executor);

} // namespace lltool
