#!/usr/bin/env bash
# Builds MegaBlocks 0.10.0, grouped_gemm 0.3.0 and stanford-stk 0.7.1 against the torch of an environment.
#
#   scripts/dev/build_megablocks.sh            build the wheels in build/megablocks/ and install them
#   scripts/dev/build_megablocks.sh --check    build, link and load the wheels, but install nothing
#
# Requires a C++ compiler and nvcc of the CUDA version that torch is built for, but no GPU. See docs/megablocks.md.
# Environment variables (relative paths are relative to the root of the repository):
#   PYTHON                 the environment's interpreter (default: .venv/bin/python)
#   CUDA_HOME              the CUDA toolkit (default: the first of these that has a suitable nvcc: the toolkit of the
#                          nvcc in PATH, /usr/local/cuda, and the pip packages of the environment)
#   TORCH_CUDA_ARCH_LIST   compute capabilities, ;-separated (default: 9.0, for H100 and H200; B200 is 10.0)
#   MAX_JOBS               number of parallel compiler processes, each of which needs about 3 GiB (default: 2)
#   OUT                    folder for sources and wheels (default: build/megablocks)
# pip's own variables also work: PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER uses the three .tar.gz files in a folder.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-build/megablocks}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0} MAX_JOBS=${MAX_JOBS:-2}
export PYTHONWARNINGS=ignore  # hide warnings of setuptools about the metadata of two packages
HASHED="megablocks==0.10.0 --hash=sha256:956fd9880fa869f7468da125da230733d5f84e10a9f8c2991e5e16523c6fe1e0
grouped_gemm==0.3.0 --hash=sha256:f0555da33a975610e9160f52449082c5e699525524581a0e5f990b14b02676a3
stanford-stk==0.7.1 --hash=sha256:fc46140c2572ee9c008b2ac67ee6656f63f49c1074da8aea0923fa8290702871"

fail() {
    echo "error: $*" >&2
    exit 2
}

# Prints the release of the CUDA toolkit in a folder, or a description of what is missing. torch's headers need
# cusparse.h.
nvcc_release() {
    if [ ! -x "$1/bin/nvcc" ]; then
        echo "no nvcc"
    elif [ ! -e "$1/include/cusparse.h" ]; then
        echo "nvcc, but not the header cusparse.h"
    else
        "$1/bin/nvcc" --version | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p'
    fi
}

case "${1:-}" in
    "" | --check) ;;
    *) fail "unknown argument $1: the only option is --check" ;;
esac

# Read the versions and the site-packages folder from the last line. The other lines are warnings.
facts=$("$PYTHON" -c 'import sysconfig, torch; print(torch.__version__, torch.version.cuda, sysconfig.get_path("purelib"))' 2>&1) ||
    fail "$PYTHON cannot import torch (${facts##*$'\n'}): install the environment, or set PYTHON"
read -r torch cuda site <<<"${facts##*$'\n'}"
[ "$cuda" != None ] ||
    fail "torch $torch of $PYTHON is built without CUDA: install a CUDA wheel (uv pip install --torch-backend auto torch)"
"$PYTHON" -c 'import setuptools, pip' 2>/dev/null || fail "$PYTHON has no pip or no setuptools: uv pip install pip setuptools"
command -v "${CXX:-g++}" >/dev/null || fail "C++ compiler ${CXX:-g++} not found: install g++, or set CXX"

# Use the first toolkit with the same major version as torch's CUDA; torch itself warns if the minor version differs.
found=""
if [ -n "${CUDA_HOME:-}" ]; then
    toolkits=("$CUDA_HOME")
else
    nvcc=$(command -v nvcc || true)
    toolkits=(${nvcc:+"$(dirname "$(dirname "$(readlink -f "$nvcc")")")"} /usr/local/cuda "$site/nvidia/cu${cuda%%.*}")
fi
for toolkit in "${toolkits[@]}"; do
    release=$(nvcc_release "$toolkit")
    [ "${release%%.*}" != "${cuda%%.*}" ] || break
    found+=" $toolkit has $release;"
done
hint=""
[ "${cuda%%.*}" -lt 13 ] || hint=" (or from pip packages: uv pip install 'cuda-toolkit[nvcc,cccl]==$cuda.*')"
[ "${release%%.*}" = "${cuda%%.*}" ] ||
    fail "torch $torch requires nvcc of CUDA $cuda, but$found install that toolkit and set CUDA_HOME$hint"
export CUDA_HOME=$toolkit
echo "torch $torch (CUDA $cuda), nvcc $release in $CUDA_HOME, compute capability $TORCH_CUDA_ARCH_LIST"

# pip runs setup.py even for a download, but checks the hashes first.
pip=("$PYTHON" -m pip --disable-pip-version-check --quiet)
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
rm -rf "${OUT:?}"/{src,lib,unpacked} "$OUT"/*.whl
mkdir "$OUT/src" "$OUT/lib"
echo "$HASHED" >"$OUT/requirements.txt"
"${pip[@]}" download --require-hashes --no-deps --no-binary :all: --no-build-isolation -d "$OUT/src" -r "$OUT/requirements.txt"
for sdist in "$OUT"/src/*.tar.gz; do tar -xzf "$sdist" -C "$OUT/src"; done
"$PYTHON" scripts/dev/patch_megablocks.py "$OUT/src"

# The pip packages contain libcudart.so.13, but not libcudart.so, which the linker needs.
if ! ls "$CUDA_HOME"/lib*/libcudart.so >/dev/null 2>&1; then
    cudart=$(find -L "$CUDA_HOME"/lib* "$site/nvidia/cuda_runtime" -name 'libcudart.so.*' 2>/dev/null | head -1 || true)
    [ -n "$cudart" ] || fail "libcudart.so not found in $CUDA_HOME: install the CUDA runtime there"
    ln -s "$cudart" "$OUT/lib/libcudart.so"
    export LIBRARY_PATH="$OUT/lib${LIBRARY_PATH:+:$LIBRARY_PATH}"
fi
for source in stanford_stk-0.7.1 grouped_gemm-0.3.0 megablocks-0.10.0; do
    echo "building $source"
    "${pip[@]}" wheel --no-deps --no-build-isolation -w "$OUT" "$OUT/src/$source"
done

# MegaBlocks' setup.py may skip its extension with only a warning, so load the compiled modules as a check.
for wheel in "$OUT"/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$OUT/unpacked"; done
PYTHONPATH="$OUT/unpacked" "$PYTHON" -c 'import sys, torch, megablocks_ops, grouped_gemm_backend
for module in (megablocks_ops, grouped_gemm_backend):
    assert module.__file__.startswith(sys.argv[1]), f"{module.__name__} was not built: this is {module.__file__}"
    print("loaded", module.__name__, "with", *(name for name in dir(module) if name[0] != "_"))' "$OUT/unpacked"
[ "${1:-}" != --check ] || exit 0
"${pip[@]}" install --no-deps --no-index --force-reinstall "$OUT"/*.whl
echo "installed; on a machine with a GPU, test with: $PYTHON -m pytest tests/models/test_experts.py -k megablocks"
