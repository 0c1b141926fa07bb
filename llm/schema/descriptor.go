package schema

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// MarshalDescriptor returns a descriptor as bytes to store, for [Compatible]: a
// FileDescriptorSet of the files that the message needs. Options that are
// extensions, rules among them, are left out: they do not count for compatibility.
func MarshalDescriptor(md protoreflect.MessageDescriptor) ([]byte, error) {
	c := collector{files: map[string]bool{}, seen: map[protoreflect.FullName]bool{}}
	c.message(md)
	return proto.MarshalOptions{Deterministic: true}.Marshal(&c.set)
}

// UnmarshalDescriptor returns the message of a name from what [MarshalDescriptor]
// returned.
func UnmarshalDescriptor(data []byte, name protoreflect.FullName) (protoreflect.MessageDescriptor, error) {
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("stored descriptor of %s: %w", name, err)
	}
	files, err := protodesc.FileOptions{AllowUnresolvable: true}.NewFiles(&set)
	if err != nil {
		return nil, fmt.Errorf("stored descriptor of %s: %w", name, err)
	}
	d, err := files.FindDescriptorByName(name)
	if err != nil {
		return nil, fmt.Errorf("stored descriptor of %s: %w", name, err)
	}
	md, ok := d.(protoreflect.MessageDescriptor)
	if !ok {
		return nil, fmt.Errorf("stored descriptor of %s: it is not a message", name)
	}
	return md, nil
}

// collector collects the files that define what a message is made of.
type collector struct {
	set   descriptorpb.FileDescriptorSet
	files map[string]bool
	seen  map[protoreflect.FullName]bool
}

func (c *collector) message(md protoreflect.MessageDescriptor) {
	if c.seen[md.FullName()] {
		return
	}
	c.seen[md.FullName()] = true
	c.file(md.ParentFile())
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		if fd.Message() != nil {
			c.message(fd.Message())
		}
		if fd.Enum() != nil {
			c.file(fd.Enum().ParentFile())
		}
	}
}

func (c *collector) file(f protoreflect.FileDescriptor) {
	if c.files[f.Path()] {
		return
	}
	c.files[f.Path()] = true
	p := protodesc.ToFileDescriptorProto(f)
	p.Service, p.Extension, p.SourceCodeInfo = nil, nil, nil
	withoutExtensions(p.ProtoReflect())
	c.set.File = append(c.set.File, p)
}

// withoutExtensions takes out the options that are extensions, known or not.
func withoutExtensions(m protoreflect.Message) {
	m.SetUnknown(nil)
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsExtension() && fd.ContainingMessage().FullName() != "google.protobuf.FeatureSet":
			m.Clear(fd)
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				withoutExtensions(v.List().Get(i).Message())
			}
		default:
			withoutExtensions(v.Message())
		}
		return true
	})
}
