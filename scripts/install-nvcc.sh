#!/usr/bin/env bash
# Installs the CUDA compiler that releases are built with, and nothing else of CUDA, from NVIDIA's
# packages for Ubuntu 22.04 on x64. As root; where there is an nvcc already, there is nothing to do.
set -euo pipefail
[ ! -x /usr/local/cuda/bin/nvcc ] || exit 0
keyring=$(mktemp --suffix=.deb)
trap 'rm -f "$keyring"' EXIT
curl -fsSL -o "$keyring" \
  https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2204/x86_64/cuda-keyring_1.1-1_all.deb
dpkg -i "$keyring"
apt-get update
apt-get install --yes --no-install-recommends cuda-nvcc-13-0 cuda-cudart-dev-13-0 cuda-cccl-13-0
