package portable

import (
	"io/fs"
	"syscall"
)

// identify returns what tells the file of fi, which is at path, from all others that exist.
func identify(path string, _ fs.FileInfo) (id identity, gone bool) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return identity{}, false
	}
	const share = syscall.FILE_SHARE_READ | syscall.FILE_SHARE_WRITE | 4 // FILE_SHARE_DELETE
	h, err := syscall.CreateFile(name, 0, share, nil, syscall.OPEN_EXISTING,
		syscall.FILE_FLAG_BACKUP_SEMANTICS|syscall.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if err != nil {
		return identity{}, false
	}
	defer syscall.CloseHandle(h)
	var info syscall.ByHandleFileInformation
	if err := syscall.GetFileInformationByHandle(h, &info); err != nil {
		return identity{}, false
	}
	// A file index is not used again soon. The time of creation would be wrong: Windows hands it on to a
	// file that takes the name of one deleted lately.
	return identity{volume: uint64(info.VolumeSerialNumber), file: uint64(info.FileIndexHigh)<<32 | uint64(info.FileIndexLow)}, false

}
