#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

// What one operator did while a profile was taken.
struct OperatorTotals {
  uint64_t outer = 0;   // calls that no other operator made
  uint64_t nested = 0;  // calls as a part of another operator
  double seconds = 0;   // of the outer calls, with all that they called
  double flops = 0;     // of the products and convolutions in the outer calls
};

struct Profile;

// Records the operators of this thread, and of the backward passes that it starts, until `stop_profile`.
Profile* start_profile();

// Ends a profile, and passes what it recorded to `visit`. It runs on the thread that started the profile.
void stop_profile(Profile* profile, const std::function<void(const std::string&, const OperatorTotals&)>& visit);
