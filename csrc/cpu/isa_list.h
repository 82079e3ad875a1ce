// The list of instruction sets, best last: DIFFGEN_ISA(name, architecture, flags).
// Read by dispatch.cpp and by native_build.py; each line has a source kernels_<name>.cpp. One whose
// flags the compiler does not know is left out by DIFFGEN_WITHOUT_<name>.
DIFFGEN_ISA(portable, any, "")
DIFFGEN_ISA(avx2, x86_64, "-mavx2 -mfma -mf16c")
#ifndef DIFFGEN_WITHOUT_avxvnni
DIFFGEN_ISA(avxvnni, x86_64, "-mavx2 -mfma -mf16c -mavxvnni")
#endif
DIFFGEN_ISA(avx512, x86_64,
            "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512")
#ifndef DIFFGEN_WITHOUT_avx512vnni
DIFFGEN_ISA(avx512vnni, x86_64,
            "-mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c -mprefer-vector-width=512")
#endif
