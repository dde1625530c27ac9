#pragma once

// Found in the place of the toolkit's header when the sources of cuda/ are built for the model.

#include "test/cuda/model/cudart.h"
#include "test/cuda/model/device.h"
