// The choice of the kernels' instruction set at run time.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace lltool {

std::vector<std::string> available_isas(); // those that this processor can run, best first

// Throws std::invalid_argument, which lists the available sets, unless this processor runs `name`.
void require_isa(const std::string& name);

// The instruction sets that the tables of kernels were compiled for.
template <class Table, size_t count> std::vector<std::string> names_of(const Table* const (&tables)[count]) {
  std::vector<std::string> names;
  for (const Table* table : tables) names.push_back(table->isa);
  return names;
}

// The table that was compiled for `name`; throws as require_isa does.
template <class Table, size_t count> const Table& table_of(const Table* const (&tables)[count], const std::string& name) {
  require_isa(name);
  size_t i = 0;
  while (tables[i]->isa != name) ++i;
  return *tables[i];
}

} // namespace lltool
