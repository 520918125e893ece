# The two targets of libtutti, from TUTTI_LIBRARY_DIR, TUTTI_INCLUDE_DIR and TUTTI_VERSION.
# Read by CMakeLists.txt in the tree and by tutti-config.cmake when installed.
if(NOT TARGET tutti::tutti)
  string(REGEX MATCH "^[0-9]+" tutti_major "${TUTTI_VERSION}")
  add_library(tutti::tutti SHARED IMPORTED GLOBAL)
  set_target_properties(tutti::tutti PROPERTIES
    IMPORTED_LOCATION "${TUTTI_LIBRARY_DIR}/libtutti.so.${TUTTI_VERSION}"
    IMPORTED_SONAME "libtutti.so.${tutti_major}"
    INTERFACE_INCLUDE_DIRECTORIES "${TUTTI_INCLUDE_DIR}")
endif()

if(NOT TARGET tutti::static)
  add_library(tutti::static STATIC IMPORTED GLOBAL)
  # A shared library that links the archive must not export what is inside it.
  set_target_properties(tutti::static PROPERTIES
    IMPORTED_LOCATION "${TUTTI_LIBRARY_DIR}/libtutti.a"
    IMPORTED_LINK_INTERFACE_LANGUAGES C
    INTERFACE_INCLUDE_DIRECTORIES "${TUTTI_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "Threads::Threads;gcc_s;util;rt;m;${CMAKE_DL_LIBS}"
    INTERFACE_LINK_OPTIONS "LINKER:--exclude-libs,libtutti.a")
endif()
