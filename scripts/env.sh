# Sourced by the Makefile's commands and by .ci/run.
export PATH="$HOME/.cargo/bin:$PATH"
if command -v ccache >/dev/null 2>&1; then
  export CC="ccache gcc" CXX="ccache g++"
fi
